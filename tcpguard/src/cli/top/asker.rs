//! Who asks the daemon for the live picture: a thread of its own, so that no key waits for an answer. What is asked and when is
//! decided by who shows it.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// Asks one thing after the other. Dropping it waits for nothing.
pub(super) struct Asker<Q, A> {
    questions: Sender<Q>,
    answers: Receiver<A>,
    /// When each question was asked that has no answer yet, the first one first.
    asked: VecDeque<Instant>,
}

impl<Q: Send + 'static, A: Send + 'static> Asker<Q, A> {
    /// One whose answers `answer` gives.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn new(mut answer: impl FnMut(Q) -> A + Send + 'static) -> io::Result<Self> {
        let ((questions, asked), (told, answers)) = (mpsc::channel(), mpsc::channel());
        thread::Builder::new().name("asker".to_owned()).spawn(move || {
            while let Ok(question) = asked.recv() {
                if told.send(answer(question)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers, asked: VecDeque::new() })
    }

    /// Asks this once everything before is answered.
    pub(super) fn ask(&mut self, question: Q) {
        self.asked.push_back(Instant::now());
        // A thread that has died never answers, which shows.
        let _ = self.questions.send(question);
    }

    /// The next answer, if there is one already.
    pub(super) fn answer(&mut self) -> Option<A> {
        let answer = self.answers.try_recv().ok()?;
        self.asked.pop_front();
        Some(answer)
    }

    /// For how long there has been no answer to the first question that has none.
    pub(super) fn waits(&self) -> Option<Duration> {
        self.asked.front().map(Instant::elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_in_order_and_nobody_waits_for_one_that_is_not() {
        let (gate, opened) = mpsc::channel::<()>();
        let mut asker = Asker::new(move |number: u32| {
            if number == 3 {
                let _ = opened.recv();
            }
            number * 10
        })
        .unwrap();
        (1..=3).for_each(|number| asker.ask(number));
        let mut answers = Vec::new();
        while answers.len() < 2 {
            answers.extend(asker.answer());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(answers, [10, 20]);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(asker.answer(), None);
        assert!(asker.waits() >= Some(Duration::from_millis(20)));
        drop(gate);
        while asker.waits().is_some() {
            answers.extend(asker.answer());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(answers, [10, 20, 30]);
    }
}
