//! The control socket's listening side: who may connect, and how much time and memory a client gets. What a
//! request does is its [`Handler`]'s business.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::background;
use super::pace::{Crowd, Pace, Place};
use super::places::Places;
use super::protocol::{Effect, Fault, MAX_REQUEST, Refusal, Reply, Request};
use super::socket::{ListenError, Socket, SocketSpec};

/// What one client may take from the daemon and from other clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients served at once; one more is told so and hung up on.
    pub clients: usize,
    /// A client has this long for one whole request, from the moment it could have started it.
    pub request_time: Duration,
    /// No client waits longer than this for the daemon's work; a change is made to its end all the same.
    pub work_time: Duration,
    /// A client has this long to read one whole reply.
    pub reply_time: Duration,
    /// The user that may come, and be refused, as often as it likes, and for whom an eighth of the places is kept; root, who could
    /// end the daemon as well.
    pub exempt: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 32,
            request_time: Duration::from_secs(5),
            work_time: Duration::from_secs(20),
            reply_time: Duration::from_secs(30),
            exempt: Some(0),
        }
    }
}

/// What a reader is told.
const ONLY_READING: &str =
    "this socket is for reading alone; ask through the control socket, as root or one of its group";
/// How long a client that waits already may take to be let in.
const AT_ONCE: Duration = Duration::from_millis(10);
/// So many clients are turned away, for coming too often, before all who come to this socket wait for a while.
const TURNED_AWAY: u32 = 8;
/// That while.
const BREATHER: Duration = Duration::from_millis(5);
/// Pause when not even the reserved descriptor lets a client in.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Does what clients ask.
pub trait Handler {
    /// The reply to one request. Several run interleaved on one thread.
    fn handle(&self, request: Request) -> impl Future<Output = Reply>;

    /// The replies to a request that is answered until its client hangs up; `None` for all that have one reply. Clients who may
    /// only read take no place from those who may do everything.
    fn follow(&self, request: &Request, rights: Rights) -> Option<Result<mpsc::Receiver<Reply>, Refusal>>;
}

/// What may be asked through a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Everything.
    All,
    /// What [`Request::is_for_readers`] says.
    Read,
}

/// A listening control socket.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    rights: Rights,
    limits: Limits,
    /// Kept back from the beginning: when clients come, there may be none left.
    reserve: RefCell<Option<File>>,
}

impl Server {
    /// Listens as `spec` says. Replaces the socket of a daemon that was killed.
    pub fn bind(spec: &SocketSpec<'_>, rights: Rights) -> Result<Self, ListenError> {
        let socket = Socket::bind(spec)?;
        let reserve = RefCell::new(File::open("/dev/null").ok());
        Ok(Self { socket, rights, limits: Limits::default(), reserve })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Serves under other limits.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves clients until it is dropped. Needs a `LocalSet`.
    pub async fn serve<H: Handler + 'static>(&self, handler: Rc<H>) {
        let (limits, rights) = (self.limits, self.rights);
        let places = Places::new(limits.clients, limits.exempt);
        let (pace, crowd) = (Rc::new(Pace::new()), Rc::new(Crowd::new(limits.clients, limits.exempt)));
        let mut turned_away = 0_u32;
        let mut reserve = Reserve::new(self.reserve.take());
        loop {
            let client = match self.socket.listener().accept().await {
                Ok((client, _)) => client,
                Err(error) => match self.accept_on_reserve(&error, &mut reserve).await {
                    Some(client) => client,
                    None => continue,
                },
            };
            reserve.relax();
            // Whoever cannot be told apart is one user.
            let user = client.peer_cred().map_or(u32::MAX, |peer| peer.uid());
            let Some((due, own)) = crowd.enter(user, Instant::now()) else {
                turn_away(&client, "your user has too many clients here, or they come too often");
                drop(client);
                turned_away = (turned_away + 1) % TURNED_AWAY;
                if turned_away == 0 {
                    sleep(BREATHER).await;
                }
                continue;
            };
            match places.take(user) {
                Some(place) => {
                    let (handler, pace) = (Rc::clone(&handler), Rc::clone(&pace));
                    tokio::task::spawn_local(async move {
                        sleep_until(due).await;
                        serve_client(client, &handler, rights, &limits, &pace, &own).await;
                        drop(place);
                    });
                }
                None => turn_away(&client, &format!("{} clients are being served", limits.clients)),
            }
        }
    }
}

impl Server {
    /// A client cannot be let in, for want of a descriptor most likely: it gets the reserved one. It may keep it if there is
    /// another by now, and is told and hung up on otherwise. When even the reserved one is gone, clients wait a little.
    async fn accept_on_reserve(&self, error: &io::Error, reserve: &mut Reserve) -> Option<UnixStream> {
        reserve.spend(error);
        let accepted = timeout(AT_ONCE, self.socket.listener().accept()).await;
        reserve.refill();
        match accepted {
            Ok(Ok((client, _))) if reserve.file.is_some() => return Some(client),
            Ok(Ok((client, _))) => turn_away(&client, "the daemon has no descriptor left"),
            Ok(Err(_)) | Err(_) => sleep(BACK_OFF).await,
        }
        reserve.refill();
        None
    }
}

/// A descriptor kept back, and whether it is being lived on.
struct Reserve {
    file: Option<File>,
    needed: bool,
}

impl Reserve {
    fn new(file: Option<File>) -> Self {
        let mut reserve = Self { file, needed: false };
        reserve.refill();
        reserve
    }

    /// Gives the descriptor up. The log hears of the first time only.
    fn spend(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.needed, true) {
            warn!(%error, "cannot accept on the control socket: clients are turned away until that is over");
        }
        self.file = None;
    }

    fn refill(&mut self) {
        if self.file.is_none() {
            self.file = File::open("/dev/null").ok();
        }
    }

    /// A client was let in without it.
    fn relax(&mut self) {
        if std::mem::take(&mut self.needed) {
            info!("clients are let in on the control socket again");
        }
    }
}

fn turn_away(client: &UnixStream, why: &str) {
    let reply = busy(why);
    // One line fits the empty buffer of a new socket; a client for which it does not is none to wait for.
    drop(client.try_write(&reply.to_line()));
}

fn busy(why: &str) -> Reply {
    Reply::Error(Refusal { kind: Fault::Busy, message: format!("{why}; try again") })
}

async fn serve_client<H: Handler + 'static>(
    mut client: UnixStream,
    handler: &Rc<H>,
    rights: Rights,
    limits: &Limits,
    pace: &Pace,
    own: &Place,
) {
    let mut buffer = Vec::new();
    loop {
        let read = timeout(limits.request_time, read_line(&mut client, &mut buffer)).await;
        let mut turn = None;
        let (reply, more) = match read {
            Ok(Ok(line)) => match Request::from_line(&line) {
                Ok(request) if rights == Rights::Read && !request.is_for_readers() => {
                    (Reply::bad_input(ONLY_READING), true)
                }
                Ok(request) => match handler.follow(&request, rights) {
                    Some(Ok(replies)) => return follow(client, replies, limits).await,
                    Some(Err(refusal)) => (Reply::Error(refusal), true),
                    None => match timeout(limits.work_time, pace.turn(&request)).await {
                        // Nobody is left to read it.
                        Ok(Ok(begun)) if begun.only_reads() && has_hung_up(&client).await => return,
                        Ok(Ok(begun)) => {
                            turn = Some(begun);
                            (answer(handler, request, limits).await, true)
                        }
                        Ok(Err(why)) => (busy(&why), true),
                        Err(_) => (busy("other clients keep the daemon busy"), true),
                    },
                },
                Err(message) => (Reply::bad_input(message), true),
            },
            // A client that sent nothing wants nothing: a quiet good-bye.
            Ok(Err(LineError::End)) | Err(_) if buffer.is_empty() => return,
            Ok(Err(LineError::End)) => (Reply::bad_input("bad request: cut short"), false),
            Err(_) => {
                (Reply::bad_input(format!("bad request: not whole after {:?}", limits.request_time)), false)
            }
            Ok(Err(LineError::TooLong)) => {
                (Reply::bad_input(format!("bad request: longer than {MAX_REQUEST} bytes")), false)
            }
            Ok(Err(LineError::Io(error))) => return debug!(%error, "control client went away"),
        };
        let is_refusal = matches!(reply, Reply::Error(_));
        let line = match reply.is_long() {
            // Not where everybody waits for it. A defect in it ends this client's service alone.
            true => match background::begin(move || reply.to_long_line()).await {
                Ok(line) => line,
                Err(error) => return debug!(%error, "a reply was lost"),
            },
            false => reply.to_line(),
        };
        drop(turn);
        if is_refusal {
            own.refused().await;
        }
        let _unread = pace.unread(line.len());
        let written = timeout(limits.reply_time, client.write_all(&line)).await;
        if !more || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// Whether a client has closed its socket: not just its writing side, behind which it may wait for an answer.
async fn has_hung_up(client: &UnixStream) -> bool {
    // A socket that its other end has closed is ready to be written to, too.
    let ready = timeout(AT_ONCE, client.ready(Interest::WRITABLE)).await;
    matches!(ready, Ok(Ok(ready)) if ready.is_write_closed())
}

/// Passes replies on until the client hangs up, or does not read one of them in time.
async fn follow(mut client: UnixStream, mut replies: mpsc::Receiver<Reply>, limits: &Limits) {
    let (mut reader, mut writer) = client.split();
    let mut byte = [0];
    loop {
        let reply = tokio::select! {
            reply = replies.recv() => reply,
            // Such a client has nothing more to say: this is its end, or none of ours.
            _ = reader.read(&mut byte) => return,
        };
        let Some(reply) = reply else { return };
        let written = timeout(limits.reply_time, writer.write_all(&reply.to_line())).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

async fn answer<H: Handler + 'static>(handler: &Rc<H>, request: Request, limits: &Limits) -> Reply {
    let within = limits.work_time;
    if request.effect() == Effect::None {
        let answer = timeout(within, handler.handle(request)).await;
        return answer
            .unwrap_or_else(|_| Reply::failed(format!("no answer from the engines within {within:?}")));
    }
    let probation = match &request {
        Request::OnProbation { seconds, .. } => {
            format!("; it is taken back {seconds}s after that unless `tcpguard confirm` follows")
        }
        _ => String::new(),
    };
    let handler = Rc::clone(handler);
    // Made to its end, whoever waits for that: half a change is worse than a late one.
    let made = tokio::task::spawn_local(async move { handler.handle(request).await });
    match timeout(within, made).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(defect)) => Reply::failed(format!("{defect}; part of the change may be in force")),
        Err(_) => Reply::failed(format!(
            "not done within {within:?}, and goes on: part of it may be in force by now, and the rest will be{probation}"
        )),
    }
}

enum LineError {
    /// The stream ended; the buffer may hold the beginning of a line.
    End,
    TooLong,
    Io(io::Error),
}

/// The next line, without its newline. What follows the line stays in `buffer`.
async fn read_line(client: &mut UnixStream, buffer: &mut Vec<u8>) -> Result<Vec<u8>, LineError> {
    let mut searched = 0;
    loop {
        if let Some(end) = buffer[searched..].iter().position(|&byte| byte == b'\n') {
            let mut line: Vec<u8> = buffer.drain(..=searched + end).collect();
            line.pop();
            return Ok(line);
        }
        searched = buffer.len();
        if searched >= MAX_REQUEST {
            return Err(LineError::TooLong);
        }
        let room = (MAX_REQUEST - searched) as u64;
        let read = client.take(room).read_buf(buffer).await.map_err(LineError::Io)?;
        if read == 0 {
            return Err(LineError::End);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::Client;
    use crate::control::protocol::{Tuned, Which};
    use crate::starved;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream as Blocking;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers `tune` at once, `flows` at length, `keys rotate` late, and never answers anything else.
    struct Picky;

    impl Handler for Picky {
        async fn handle(&self, request: Request) -> Reply {
            match request {
                Request::Tune { .. } => {
                    let (name, unit) = ("n".into(), "ms".into());
                    Reply::Tuned(Tuned { name, unit, old: 1, new: 2, saved: None, unconfirmed_ms: None })
                }
                Request::Flows { limit: SLOW, .. } => {
                    LISTED.fetch_add(1, Ordering::Relaxed);
                    sleep(QUICK.work_time / 3).await;
                    Reply::failed("slow")
                }
                Request::Flows { .. } => Reply::failed("long ".repeat(1 << 20)),
                Request::KeysRotate {} => {
                    sleep(QUICK.work_time * 2).await;
                    ROTATED.fetch_add(1, Ordering::Relaxed);
                    Reply::Confirmed {}
                }
                _ => std::future::pending().await,
            }
        }

        /// Endless replies to `monitor`.
        fn follow(&self, request: &Request, _: Rights) -> Option<Result<mpsc::Receiver<Reply>, Refusal>> {
            let Request::Monitor { .. } = request else { return None };
            let (sender, receiver) = mpsc::channel(1);
            tokio::task::spawn_local(async move {
                while sender.send(Reply::Monitoring {}).await.is_ok() {}
                FOLLOWED.fetch_add(1, Ordering::Relaxed);
            });
            Some(Ok(receiver))
        }
    }

    /// A list that takes time, and how often it was begun.
    const SLOW: u32 = 7;
    static LISTED: AtomicUsize = AtomicUsize::new(0);
    /// How many changes were made to their end.
    static ROTATED: AtomicUsize = AtomicUsize::new(0);
    /// How many followers of `Picky`'s have ended.
    static FOLLOWED: AtomicUsize = AtomicUsize::new(0);

    const QUICK: Limits = Limits {
        clients: 4,
        request_time: Duration::from_millis(300),
        work_time: Duration::from_millis(300),
        reply_time: Duration::from_millis(300),
        exempt: Some(0),
    };

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tcpguard-control-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Runs `clients` on a thread of its own against a server that `Picky` answers for.
    fn against_server(name: &str, clients: impl FnOnce(&Path) + Send + 'static) {
        against(Rights::All, name, clients);
    }

    fn against(rights: Rights, name: &str, clients: impl FnOnce(&Path) + Send + 'static) {
        against_limited(QUICK, rights, name, clients);
    }

    fn against_limited(
        limits: Limits,
        rights: Rights,
        name: &str,
        clients: impl FnOnce(&Path) + Send + 'static,
    ) {
        let path = directory(name).join("s");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let spec = SocketSpec { path: &path, group: None, mode: 0o660 };
            let server = Server::bind(&spec, rights).unwrap().with_limits(limits);
            let socket = path.clone();
            let clients = tokio::task::spawn_blocking(move || clients(&socket));
            tokio::select! {
                () = server.serve(Rc::new(Picky)) => unreachable!(),
                done = clients => done.unwrap(),
            }
        });
        assert!(!path.exists(), "the socket goes with its server");
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    fn tune() -> Request {
        Request::Tune { service: None, name: None, value: None, save: false }
    }

    /// Sends `bytes` and returns all that comes back.
    fn exchange(path: &Path, bytes: &[u8], half_close: bool) -> String {
        let mut client = Blocking::connect(path).unwrap();
        // The server may hang up before it has read everything.
        drop(client.write_all(bytes));
        if half_close {
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut answer = Vec::new();
        drop(client.read_to_end(&mut answer));
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn garbage_half_a_request_and_an_endless_line_each_get_one_clear_error() {
        against_server("garbage", |path| {
            let endless = vec![b'x'; 10 << 20];
            for (bytes, half_close, why) in [
                (&b"\xff\xfe\x00garbage\n"[..], true, "expected value"),
                (b"{\"v\":1,\"op\":\"tu", true, "cut short"),
                (b"{\"v\":1,\"op\":\"tu", false, "not whole after"),
                (b"{\"v\":9,\"op\":\"tune\"}\n", true, "protocol version 9"),
                (&endless, false, "longer than"),
            ] {
                let answer = exchange(path, bytes, half_close);
                assert_eq!(answer.lines().count(), 1, "{answer}");
                let Reply::Error(refusal) = Reply::from_line(answer.as_bytes()).unwrap() else {
                    panic!("{answer}")
                };
                assert_eq!(refusal.kind, Fault::BadInput);
                assert!(refusal.message.contains(why), "{answer}");
            }
            assert_eq!(exchange(path, b"", true), "");
            assert!(matches!(Client::new(path).ask(&tune()), Ok(Reply::Tuned(_))));
        });
    }

    #[test]
    fn one_connection_may_ask_more_than_once_even_in_one_write() {
        against_server("pipelined", |path| {
            let answers = exchange(path, &[tune().to_line(), tune().to_line()].concat(), true);
            assert_eq!(answers.lines().count(), 2, "{answers}");
        });
    }

    #[test]
    fn silent_and_unreading_clients_stall_nobody_and_are_hung_up_on() {
        against_server("stall", |path| {
            let silent: Vec<Blocking> = (0..2).map(|_| Blocking::connect(path).unwrap()).collect();
            let mut unreading = Blocking::connect(path).unwrap();
            unreading
                .write_all(&Request::Flows { which: Which::default(), sort: None, limit: 0 }.to_line())
                .unwrap();
            let asked = std::time::Instant::now();
            assert!(matches!(Client::new(path).ask(&tune()), Ok(Reply::Tuned(_))));
            assert!(asked.elapsed() < QUICK.request_time, "{:?}", asked.elapsed());
            for mut client in silent {
                assert_eq!(client.read(&mut [0; 16]).unwrap(), 0, "hung up on without a word");
            }
            std::thread::sleep(QUICK.reply_time * 2);
            let mut got = Vec::new();
            drop(unreading.read_to_end(&mut got));
            assert!(!got.is_empty() && got.len() < 5 << 20, "the reply was cut off: {}", got.len());
        });
    }

    #[test]
    fn a_list_is_not_made_for_a_client_that_has_hung_up_but_for_one_that_only_has_no_more_to_ask() {
        against_server("hung-up", |path| {
            let list = Request::Flows { which: Which::default(), sort: None, limit: SLOW }.to_line();
            let ask = || {
                let mut client = Blocking::connect(path).unwrap();
                client.write_all(&list).unwrap();
                client
            };
            let mut first = ask();
            while LISTED.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            // While the first one's is being made.
            drop(ask());
            let second = exchange(path, &list, true);
            let mut answer = String::new();
            first.shutdown(std::net::Shutdown::Write).unwrap();
            first.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("slow") && second.contains("slow"), "{answer} {second}");
            assert_eq!(LISTED.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn who_follows_is_served_until_it_hangs_up_or_stops_reading() {
        against_server("follow", |path| {
            let mut reading = Blocking::connect(path).unwrap();
            reading.write_all(&Request::Monitor { reasons: vec![], services: vec![] }.to_line()).unwrap();
            let mut unreading = Blocking::connect(path).unwrap();
            unreading.write_all(&Request::Monitor { reasons: vec![], services: vec![] }.to_line()).unwrap();
            let mut lines = [0; 1 << 16];
            for _ in 0..10 {
                reading.read_exact(&mut lines).unwrap();
                assert!(matches!(Client::new(path).ask(&tune()), Ok(Reply::Tuned(_))));
            }
            let ended = |count| {
                for _ in 0..100 {
                    if FOLLOWED.load(Ordering::Relaxed) == count {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                panic!("never {count} followers ended");
            };
            ended(1);
            drop(reading);
            ended(2);
        });
    }

    #[test]
    fn one_client_too_many_is_told_so() {
        against_server("busy", |path| {
            let _silent: Vec<Blocking> =
                (0..QUICK.clients).map(|_| Blocking::connect(path).unwrap()).collect();
            let answer = exchange(path, b"", false);
            assert!(answer.contains("\"busy\""), "{answer}");
        });
    }

    #[test]
    fn without_a_descriptor_left_each_client_is_told_so_and_the_log_once() {
        let name =
            "control::server::tests::without_a_descriptor_left_each_client_is_told_so_and_the_log_once";
        if !starved::is_starved(name) {
            return;
        }
        let log = directory("starved-log").join("log");
        let subscriber =
            tracing_subscriber::fmt().with_writer(Arc::new(File::create(&log).unwrap())).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        against_server("starved", |path| {
            let address = socket2::SockAddr::unix(path).unwrap();
            let new = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
            let clients: Vec<_> = (0..20).map(|_| new()).collect();
            let hoard = starved::hoard();
            for mut client in clients {
                client.connect(&address).unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).unwrap();
                assert!(answer.contains("\"busy\"") && answer.contains("no descriptor left"), "{answer}");
                // Its own would be the next one's.
                std::mem::forget(client);
            }
            drop(hoard);
            assert!(matches!(Client::new(path).ask(&tune()), Ok(Reply::Tuned(_))));
        });
        let said = std::fs::read_to_string(&log).unwrap();
        let count = |what: &str| said.lines().filter(|line| line.contains(what)).count();
        assert_eq!((count("WARN"), count("let in on the control socket again")), (1, 1), "{said}");
        std::fs::remove_dir_all(log.parent().unwrap()).unwrap();
    }

    #[test]
    fn bad_requests_and_clients_that_come_and_go_are_served_so_often_and_no_more() {
        let limits = Limits { exempt: None, ..QUICK };
        against_limited(limits, Rights::All, "often", |path| {
            let began = std::time::Instant::now();
            let mut client = Blocking::connect(path).unwrap();
            let mut requests = client.try_clone().unwrap();
            let writer = std::thread::spawn(move || while requests.write_all(b"x\n").is_ok() {});
            let (mut answers, mut bytes) = (0, [0; 1 << 12]);
            while began.elapsed() < Duration::from_secs(2) {
                let read = client.read(&mut bytes).unwrap();
                answers += bytes[..read].iter().filter(|&&byte| byte == b'\n').count();
            }
            drop(client.shutdown(std::net::Shutdown::Both));
            writer.join().unwrap();
            let most = |began: std::time::Instant| 520 + 500 * began.elapsed().as_millis() as usize / 1000;
            assert!(answers > 100 && answers <= most(began), "{answers}");

            let (mut came, mut let_in) = (0, 0);
            while began.elapsed() < Duration::from_secs(3) {
                came += 1;
                let answer = exchange(path, b"", true);
                let_in += usize::from(answer.is_empty());
            }
            assert!(let_in + answers <= most(began), "{let_in} of {came} after {answers}");
        });
    }

    #[test]
    fn work_that_never_ends_is_given_up() {
        against_server("work", |path| {
            let Ok(Reply::Error(refusal)) = Client::new(path).ask(&Request::Status {}) else { panic!() };
            assert_eq!(refusal.kind, Fault::Failed);
        });
    }

    /// It used to be dropped in the middle.
    #[test]
    fn a_change_that_takes_long_is_not_waited_for_and_made_all_the_same() {
        against_server("change", |path| {
            let Ok(Reply::Error(refusal)) = Client::new(path).ask(&Request::KeysRotate {}) else { panic!() };
            assert_eq!(refusal.kind, Fault::Failed);
            assert!(refusal.message.contains("part of it may be in force"), "{}", refusal.message);
            assert_eq!(ROTATED.load(Ordering::Relaxed), 0);
            std::thread::sleep(QUICK.work_time * 2);
            assert_eq!(ROTATED.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn a_reader_may_read_and_nothing_else() {
        against(Rights::Read, "reader", |path| {
            assert!(matches!(Client::new(path).ask(&tune()), Ok(Reply::Tuned(_))));
            let change =
                Request::Tune { service: None, name: Some("n".into()), value: Some("1".into()), save: false };
            for request in
                [change, Request::Confirm {}, Request::Monitor { reasons: vec![], services: vec![] }]
            {
                let Ok(Reply::Error(refusal)) = Client::new(path).ask(&request) else {
                    panic!("{request:?}")
                };
                assert_eq!(refusal.kind, Fault::BadInput);
                assert!(refusal.message.contains("for reading alone"), "{}", refusal.message);
            }
        });
    }
}
