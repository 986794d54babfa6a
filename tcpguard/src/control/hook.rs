//! The command that hears of events: run for one after the other, with the event on its standard input, for a bounded time.
//! It never holds the daemon up. What is an event is decided elsewhere.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::warn;

use crate::config::Events;
use crate::telemetry::throttle::Throttle;

use super::guard::Guard;
use super::protocol::{Event, HookRuns, Versioned};

/// Events that may wait while it runs.
const WAITING: usize = 16;
/// A hook that fails is written about this often.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// The hook, and what waits for it.
pub(super) struct Hook {
    config: Events,
    waiting: RefCell<VecDeque<Vec<u8>>>,
    came: Notify,
    runs: Cell<HookRuns>,
    said: RefCell<Throttle>,
}

/// How one run ended.
enum End {
    Exited(std::io::Result<ExitStatus>),
    Late,
}

impl Hook {
    pub(super) fn new(config: &Events) -> Self {
        Self {
            config: config.clone(),
            waiting: RefCell::default(),
            came: Notify::new(),
            runs: Cell::default(),
            said: RefCell::new(Throttle::new(SAID_EVERY)),
        }
    }

    /// Has the hook hear of an event, once it is done with those before.
    pub(super) fn offer(&self, event: &Event) {
        if self.config.hook.is_empty() {
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WAITING {
            let runs = self.runs.get();
            self.runs.set(HookRuns { skipped: runs.skipped + 1, ..runs });
            return;
        }
        // Plain data with string keys has no way to fail.
        let mut line = serde_json::to_vec(&Versioned::new(event)).unwrap_or_default();
        line.push(b'\n');
        waiting.push_back(line);
        self.came.notify_one();
    }

    /// What became of its runs.
    pub(super) fn runs(&self) -> HookRuns {
        self.runs.get()
    }

    async fn work(&self) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(line) = next else {
                self.came.notified().await;
                continue;
            };
            let end = match self.start() {
                Ok(child) => end(child, &line, self.config.hook_time).await,
                Err(error) => End::Exited(Err(error)),
            };
            self.count(&end);
        }
    }

    fn start(&self) -> std::io::Result<Child> {
        let (program, arguments) = self.config.hook.split_first().ok_or(std::io::ErrorKind::NotFound)?;
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    fn count(&self, end: &End) {
        let runs = self.runs.get();
        let why = match end {
            End::Exited(Ok(status)) if status.success() => {
                return self.runs.set(HookRuns { done: runs.done + 1, ..runs });
            }
            End::Exited(Ok(status)) => status.to_string(),
            End::Exited(Err(error)) => error.to_string(),
            End::Late => format!("not done after {:?}", self.config.hook_time),
        };
        self.runs.set(match end {
            End::Late => HookRuns { late: runs.late + 1, ..runs },
            End::Exited(_) => HookRuns { failed: runs.failed + 1, ..runs },
        });
        if let Some(failures) = self.said.borrow_mut().event(Instant::now()) {
            warn!(hook = ?self.config.hook, why, failures, "the hook for events failed");
        }
    }
}

/// Feeds it and waits for its end, for so long; then it and all that it started are killed.
async fn end(mut child: Child, line: &[u8], time: Duration) -> End {
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let fed = async {
        if let Some(mut input) = child.stdin.take() {
            // One that does not want to know need not read.
            drop(input.write_all(line).await);
        }
        child.wait().await
    };
    if let Ok(status) = timeout(time, fed).await {
        return End::Exited(status);
    }
    if let Some(group) = group {
        // Not there any more is what it should be.
        let _ = kill_process_group(group, Signal::KILL);
    }
    drop(child.wait().await);
    End::Late
}

/// Runs the hook for as long as the daemon lives.
pub(super) async fn run(guard: Rc<Guard>) {
    guard.attacks.hook.work().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::Attack;

    fn event(number: u64) -> Event {
        let attack = Attack {
            number: 1,
            service: "10.0.0.1:80".parse().unwrap(),
            kind: "syn-flood".into(),
            began_ms: 1,
            ended_ms: None,
            rate: 2,
            peak: 3,
            total: 4,
            sampled: 5,
            sources_seen: 6,
            sources_at_least: 7,
            prefixes: Vec::new(),
        };
        Event { number, time_ms: 8, event: "attack-began".into(), attack }
    }

    /// Offers so many events to a shell that does this, and waits until each was dealt with.
    fn runs(script: &str, events: u64, hook_time: Duration) -> HookRuns {
        let hook = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let hook = Hook::new(&Events { hook, hook_time });
        (0..events).for_each(|number| hook.offer(&event(number)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let all = || {
            let HookRuns { done, failed, late, skipped } = hook.runs();
            done + failed + late + skipped == events
        };
        runtime.block_on(async {
            let dealt = async {
                while !all() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! { () = hook.work() => {}, () = dealt => {} }
        });
        hook.runs()
    }

    #[test]
    fn each_event_is_one_line_of_json_in_the_order_in_which_they_happened() {
        let out = std::env::temp_dir().join(format!("tcpguard-hook-{}", std::process::id()));
        let patience = Duration::from_secs(30);
        let done = runs(&format!("cat >> {}", out.display()), 3, patience);
        assert_eq!(done, HookRuns { done: 3, ..HookRuns::default() });
        let text = std::fs::read_to_string(&out).unwrap();
        std::fs::remove_file(out).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let read = |line: &serde_json::Value| (line["version"].as_u64(), line["number"].as_u64());
        assert_eq!(
            lines.iter().map(read).collect::<Vec<_>>(),
            [0, 1, 2].map(|number| (Some(1), Some(number)))
        );
        assert_eq!(lines[0]["attack"]["kind"], "syn-flood");
    }

    #[test]
    fn what_fails_or_never_ends_is_counted_and_killed_with_all_that_it_started() {
        let (patience, soon) = (Duration::from_secs(30), Duration::from_millis(100));
        assert_eq!(runs("exit 3", 2, patience), HookRuns { failed: 2, ..HookRuns::default() });
        let pids = std::env::temp_dir().join(format!("tcpguard-hook-pids-{}", std::process::id()));
        let script = format!("sleep 600 & echo $! > {}; wait", pids.display());
        assert_eq!(runs(&script, 1, Duration::from_secs(2)), HookRuns { late: 1, ..HookRuns::default() });
        let sleeper = std::fs::read_to_string(&pids).unwrap();
        std::fs::remove_file(pids).unwrap();
        let stat = std::path::Path::new("/proc").join(sleeper.trim()).join("stat");
        let is_dead = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z"));
        (0..500)
            .find(|_| {
                is_dead() || {
                    std::thread::sleep(Duration::from_millis(10));
                    false
                }
            })
            .unwrap();
        // What is beyond those that may wait is not run at all.
        let most = WAITING as u64;
        assert_eq!(
            runs("sleep 600", most + 5, soon),
            HookRuns { late: most, skipped: 5, ..HookRuns::default() }
        );
    }

    #[test]
    fn a_hook_that_is_not_there_fails_and_none_is_none() {
        let config = Events { hook: vec!["/nonexistent/hook".into()], ..Events::default() };
        assert!(Hook::new(&config).start().is_err());
        let none = Hook::new(&Events::default());
        none.offer(&event(1));
        assert!(none.waiting.borrow().is_empty());
    }
}
