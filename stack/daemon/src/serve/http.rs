//! The control API's HTTP/1.1 server, on a thread of its own. Everything that a client can make last or grow is
//! bounded: the connections, head and body of a request, the time for each of them, and the time to take an answer.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::capture::{self, Blocks, CaptureRequest};
use super::control::Control;
use super::events::Next;
use super::patience::{Lasting, Patience};
use super::routes::{self, Answer, Operation};
use crate::api::ApiError;

/// Connections at the same time. More wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 128;

/// Largest body of a request, bytes.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// Largest head of a request, bytes, and the most headers in it.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// Time for the head of a request, which includes the time that a connection is idle.
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// Time for the body of a request.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// Time for a request to be carried out. It is carried out whole in any case, perhaps after its client got this answer.
const WORK_WAIT: Duration = Duration::from_secs(60);

/// Pause after accept(2) failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Threads that carry out requests.
const BLOCKING_THREADS: usize = 4;

/// Pieces of events that wait for a client.
const EVENTS_AHEAD: usize = 4;

/// Interval of the comments that are sent while nothing happens, so that both ends notice when the other is gone.
const EVENTS_ALIVE: Duration = Duration::from_secs(15);

/// Time for open requests at the end.
const END_WAIT: Duration = Duration::from_secs(1);

/// The running server.
#[derive(Debug)]
pub(super) struct Server {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts the thread.
    pub(super) fn start(listener: UnixListener, control: Arc<Control>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("skb-request")
            .build()?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            if let Err(e) = serve(&runtime, listener, &control, stopped) {
                tracing::error!("control socket: {e}");
            }
            // What a client started is carried out: half of it would remain otherwise.
            runtime.shutdown_timeout(WORK_WAIT);
        };
        let thread = thread::Builder::new().name("skb-api".to_owned()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Accepts no more requests, and waits a bounded time for those under way.
    pub(super) fn stop(self) {
        let _ = self.stop.send(());
        // Fails if the thread panicked, which has ended the process already.
        let _ = self.thread.join();
    }
}

/// Serves connections until `stopped`.
fn serve(
    runtime: &Runtime,
    listener: UnixListener,
    control: &Arc<Control>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&slots), Arc::clone(control)));
        // An error means that the sender is gone, which is a stop as well.
        let _ = stopped.await;
        accepting.abort();
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        // All slots are free when no connection is left.
        let _ = timeout(END_WAIT, slots.acquire_many(all)).await;
        Ok(())
    })
}

/// Accepts connections as long as there are slots for them.
async fn accept(listener: tokio::net::UnixListener, slots: Arc<Semaphore>, control: Arc<Control>) {
    // Fails only for a closed semaphore, which this one never is.
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    connection(stream, control).await;
                    drop(slot);
                });
            }
            Err(e) => {
                tracing::warn!("control socket: accept: {e}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until its client closes it, or breaks a bound.
async fn connection(stream: UnixStream, control: Arc<Control>) {
    let stream = Patience::new(stream);
    let lasting = stream.lasting();
    let service = service_fn(move |request| {
        let (control, lasting) = (Arc::clone(&control), lasting.clone());
        async move { Ok::<_, Infallible>(respond(request, control, &lasting).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // The client's own doing, and of no interest unless it is being searched for.
    if let Err(e) = served {
        tracing::debug!("control socket: {e}");
    }
}

/// The body of an answer: whole, or a stream.
type Body = Either<Full<Bytes>, Either<Channel<Bytes, Infallible>, Blocks>>;

/// Carries out one request.
async fn respond(
    request: Request<Incoming>,
    control: Arc<Control>,
    lasting: &Lasting,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query = head.uri.query().unwrap_or_default().to_owned();
    match routes::find(head.method.as_str(), &path) {
        Ok((Operation::Events, _)) => return events(&head.headers, control),
        Ok((Operation::Capture, name)) => {
            return capture(control, name.to_owned(), query, lasting).await;
        }
        _ => {}
    }
    let answer = match read(body).await {
        Ok(body) => {
            let method = head.method.as_str().to_owned();
            carry_out(move || routes::answer(&control, &method, &path, &query, &body)).await
        }
        Err(e) => Err(e),
    };
    response(answer)
}

/// Does the work of a request on another thread: it waits for workers and for the kernel.
async fn carry_out<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match timeout(WORK_WAIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(ApiError::new(500, "internal", "the request failed")),
        Err(_) => {
            let message = "the request takes long: it is carried out later, or refused";
            Err(ApiError::new(503, "timeout", message))
        }
    }
}

/// Answers with the container's frames from now on.
async fn capture(
    control: Arc<Control>,
    name: String,
    query: String,
    lasting: &Lasting,
) -> Response<Body> {
    let start = move || {
        let request = CaptureRequest::parse(&query)?;
        control.capture(&name, request)
    };
    match carry_out(start).await {
        Ok(blocks) => {
            // A client that pauses loses frames, but not its capture.
            lasting.set();
            stream(capture::PCAPNG, Either::Right(blocks))
        }
        Err(e) => response(Err(e)),
    }
}

/// An answer without a known end.
fn stream(kind: &'static str, body: Either<Channel<Bytes, Infallible>, Blocks>) -> Response<Body> {
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Answers with the events from now on, or from those after the client's last one.
fn events(headers: &HeaderMap, control: Arc<Control>) -> Response<Body> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.trim().parse().ok());
    let last = last.unwrap_or_else(|| control.events.last());
    let (to, body) = Channel::new(EVENTS_AHEAD);
    tokio::spawn(async move {
        // An error means that the client is gone.
        let _ = send_events(&control, last, to).await;
    });
    stream("text/event-stream", Either::Left(body))
}

/// Sends events as they happen, until the daemon ends.
async fn send_events(
    control: &Control,
    mut last: u64,
    mut to: Sender<Bytes>,
) -> Result<(), http_body_util::channel::SendError> {
    let mut changes = control.events.changes();
    // The head of the answer is sent with the first piece of its body.
    to.send_data(Bytes::from_static(b": events\n\n")).await?;
    loop {
        // Before the events are read: one that is added meanwhile counts as a change.
        changes.borrow_and_update();
        match control.events.after(last) {
            Next::Text(text, until) => {
                to.send_data(Bytes::from(text)).await?;
                last = until;
            }
            Next::Nothing => {
                if timeout(EVENTS_ALIVE, changes.changed()).await.is_err() {
                    to.send_data(Bytes::from_static(b": alive\n\n")).await?;
                }
            }
            Next::End => return Ok(()),
        }
    }
}

/// Reads a body within its bounds.
async fn read(body: Incoming) -> Result<Bytes, ApiError> {
    match timeout(BODY_WAIT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            Err(ApiError::new(413, "too_large", message))
        }
        Ok(Err(e)) => Err(ApiError::invalid("bad_request", format!("the body: {e}"))),
        Err(_) => Err(ApiError::new(408, "timeout", "the body did not arrive in time")),
    }
}

/// The HTTP response of an answer.
fn response(answer: Result<Answer, ApiError>) -> Response<Body> {
    let (status, kind, body, allow) = match answer {
        Ok(Answer { status, kind, body }) => (status, kind, body, None),
        Err(ApiError { status, body }) => {
            // Serializing a struct of texts does not fail.
            let json = serde_json::to_string(&body).unwrap_or_default();
            // RFC 9110 section 15.5.6: the answer lists the methods that are allowed.
            let allow = (status == 405).then_some(body.message);
            (status, routes::JSON, json, allow)
        }
    };
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(allow) = allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}
