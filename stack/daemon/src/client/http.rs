//! One request to the daemon, over HTTP/1.1 on its socket.

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::exit::Failure;

/// Longest wait for an answer: longer than the daemon takes for any request.
const WAIT: Duration = Duration::from_secs(90);

/// Largest answer, bytes: that of a daemon with 16,384 containers fits.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Longest line of a stream, bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Whether a stream goes on after a piece of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next piece is needed.
    Continue,
    /// No more is needed.
    End,
}

/// A connection to the daemon.
#[derive(Debug)]
pub(super) struct Connection {
    runtime: Runtime,
    stream: UnixStream,
}

impl Connection {
    pub(super) fn open(socket: &Path) -> Result<Self, Failure> {
        let shown = socket.display();
        let failed = |e: io::Error| Failure::other(format!("{shown}: {e}"));
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(failed)?;
        let stream = runtime.block_on(UnixStream::connect(socket)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::other(format!(
                "{shown}: no daemon serves this socket: start one (skbudget serve), or name its socket (--socket)"
            )),
            io::ErrorKind::PermissionDenied => {
                Failure::other(format!("{shown}: {e}: root and the daemon's user may control it"))
            }
            _ => failed(e),
        })?;
        Ok(Self { runtime, stream })
    }

    /// Follows a stream of lines until it ends. `after`: the number of the last event that is not needed again.
    pub(super) fn follow(
        self,
        path: &str,
        after: Option<u64>,
        mut line: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Self { runtime, stream } = self;
        let mut request = Request::builder().uri(path).header(HOST, "skbudget");
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|e| Failure::other(e.to_string()))?;
        runtime.block_on(async {
            let failed = |e: hyper::Error| Failure::other(format!("the daemon: {e}"));
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
            tokio::spawn(connection);
            let answer = sender.send_request(request).await.map_err(failed)?;
            if !answer.status().is_success() {
                return Err(Failure::other(format!("the daemon: status {}", answer.status())));
            }
            // No limit of time: a daemon in which nothing happens sends only comments.
            let mut body = answer.into_body();
            // The start of a line that has not arrived whole.
            let mut rest = Vec::new();
            while let Some(frame) = body.frame().await {
                rest.extend_from_slice(frame.map_err(failed)?.data_ref().unwrap_or(&Bytes::new()));
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let bytes: Vec<u8> = rest.drain(..=end).collect();
                    line(String::from_utf8_lossy(&bytes).trim_end())?;
                }
                if rest.len() > LINE_BYTES_MAX {
                    return Err(Failure::other("the daemon: a line of the stream is too long"));
                }
            }
            Ok(())
        })
    }

    /// Passes on the body of an answer as it arrives, until it ends, or `interrupted` or `piece` ends it.
    pub(super) fn stream(
        self,
        path: &str,
        interrupted: oneshot::Receiver<()>,
        mut piece: impl FnMut(&[u8]) -> Result<Flow, Failure>,
    ) -> Result<(), Failure> {
        let Self { runtime, stream } = self;
        let request = Request::builder().uri(path).header(HOST, "skbudget");
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|e| Failure::other(e.to_string()))?;
        runtime.block_on(async {
            let failed = |e: hyper::Error| Failure::other(format!("the daemon: {e}"));
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
            tokio::spawn(connection);
            let late = || Failure::other("the daemon does not answer");
            let answer = timeout(WAIT, sender.send_request(request)).await;
            let answer = answer.map_err(|_| late())?.map_err(failed)?;
            let status = answer.status().as_u16();
            let mut body = answer.into_body();
            if !(200..300).contains(&status) {
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                let body = body.map_err(|e| Failure::other(format!("the daemon's answer: {e}")))?;
                let answer = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
                return Err(super::refused(status, answer));
            }
            // An error means that no signal can arrive.
            let interrupted = async {
                if interrupted.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let pass = async {
                while let Some(frame) = body.frame().await {
                    let bytes = frame.map_err(failed)?.into_data().unwrap_or_default();
                    if piece(&bytes)? == Flow::End {
                        break;
                    }
                }
                Ok(())
            };
            first_of(pass, interrupted).await.unwrap_or(Ok(()))
        })
    }

    /// Sends the request. Returns status and body of the answer.
    pub(super) fn request(
        self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(u16, Bytes), Failure> {
        let Self { runtime, stream } = self;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "skbudget")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)));
        let request = request.map_err(|e| Failure::other(e.to_string()))?;
        runtime.block_on(async {
            let failed = |e: hyper::Error| Failure::other(format!("the daemon: {e}"));
            // One connection for one request: it ends with this process.
            let exchange = async {
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                // Its errors are those of the request below.
                tokio::spawn(connection);
                sender.send_request(request).await
            };
            let late = || Failure::other("the daemon does not answer");
            let answer = timeout(WAIT, exchange).await.map_err(|_| late())?.map_err(failed)?;
            let status = answer.status().as_u16();
            // The socket may be another program's, with an answer without end.
            let read = Limited::new(Response::into_body(answer), ANSWER_BYTES_MAX).collect();
            let body = timeout(WAIT, read).await.map_err(|_| late())?;
            let body = body.map_err(|e| Failure::other(format!("the daemon's answer: {e}")))?;
            Ok((status, body.to_bytes()))
        })
    }
}

/// The output of `work`; `None`: `end` was first.
async fn first_of<T>(work: impl Future<Output = T>, end: impl Future<Output = ()>) -> Option<T> {
    let (mut work, mut end) = (pin!(work), pin!(end));
    poll_fn(|cx| match (work.as_mut().poll(cx), end.as_mut().poll(cx)) {
        (Poll::Ready(output), _) => Poll::Ready(Some(output)),
        (Poll::Pending, Poll::Ready(())) => Poll::Ready(None),
        _ => Poll::Pending,
    })
    .await
}
