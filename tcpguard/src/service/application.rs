//! A service whose connections go to the program that has this library in it: its task takes the listener, on the thread
//! of each engine.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::engine::TcpListener;

/// What the program does with a service's connections. Clones do the same.
#[derive(Clone)]
pub struct Application(Arc<Serve>);

type Serve = dyn Fn(TcpListener) -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync;

impl Application {
    /// An application that `serve`s a listener on each engine's thread: streams stay on the thread they came from.
    pub fn new<F>(serve: impl Fn(TcpListener) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        Self(Arc::new(move |listener| Box::pin(serve(listener))))
    }

    pub(super) fn serve(&self, listener: TcpListener) -> impl Future<Output = ()> + 'static {
        (self.0)(listener)
    }
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Application")
    }
}
