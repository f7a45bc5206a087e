//! A connection to a client that must take what is sent to it: a write that waits too long is an error.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

/// How long a client may take nothing of what is sent to it.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// The same for a stream that loses data, and not memory, while its client pauses: that of a capture.
const LASTING_WAIT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Patience {
    stream: UnixStream,
    wait: Duration,
    /// Set while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    lasting: Lasting,
}

/// Lets the client of a connection pause for longer.
#[derive(Debug, Clone, Default)]
pub(super) struct Lasting(Arc<AtomicBool>);

impl Lasting {
    /// From the next write that waits on.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Patience {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, wait: WRITE_WAIT, waiting: None, lasting: Lasting::default() }
    }

    pub(super) fn lasting(&self) -> Lasting {
        self.lasting.clone()
    }

    /// The result of a write; an error if it has waited too long.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut UnixStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = write(Pin::new(&mut self.stream), cx) {
            self.waiting = None;
            return Poll::Ready(result);
        }
        let wait = if self.lasting.0.load(Ordering::Relaxed) { LASTING_WAIT } else { self.wait };
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(wait)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patience {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The server bounds the time of reads: that for a head, and that for a body.
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patience {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.bounded(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.bounded(cx, |stream, cx| stream.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;
    use std::os::unix::net;
    use std::thread;

    use tokio::runtime::Builder;

    use super::*;

    /// Writes `n` bytes. Every wait for the reader is bounded.
    fn write(to: net::UnixStream, n: usize, wait: Duration) -> io::Result<()> {
        to.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let stream = UnixStream::from_std(to)?;
            let mut writer = Patience { stream, wait, waiting: None, lasting: Lasting::default() };
            let mut left = vec![7; n];
            while !left.is_empty() {
                let written = poll_fn(|cx| Pin::new(&mut writer).poll_write(cx, &left)).await?;
                left.drain(..written);
            }
            Ok(())
        })
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up() {
        let (ours, _theirs) = net::UnixStream::pair().unwrap();
        let error = write(ours, 64 << 20, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_client_that_takes_its_time_gets_everything() {
        let (ours, mut theirs) = net::UnixStream::pair().unwrap();
        let reader = thread::spawn(move || {
            let (mut bytes, mut all) = (vec![0; 64 << 10], 0);
            while let Ok(n @ 1..) = theirs.read(&mut bytes) {
                all += n;
                thread::sleep(Duration::from_millis(1));
            }
            all
        });
        write(ours, 4 << 20, Duration::from_secs(60)).unwrap();
        assert_eq!(reader.join().unwrap(), 4 << 20);
    }
}
