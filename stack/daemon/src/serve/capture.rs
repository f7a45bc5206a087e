//! Captures as the API has them: the query of a request, and the body of an answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use skbudget_stack::tap::SNAPLEN_RANGE;
use tokio::time::{Sleep, sleep};

use super::query;
use crate::api::{ApiError, CAPTURE_KEYS};
use crate::capture::{CAPTURE_BYTES_MIN, Filter, Stream};
use crate::keys::hint;
use crate::units::parse_size;

/// Content type of captures.
pub(super) const PCAPNG: &str = "application/x-pcapng";

/// What a client captures: the query of `GET /v1/containers/{name}/capture`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CaptureRequest {
    /// `None`: all frames.
    pub(super) filter: Option<Filter>,
    /// `None`: no bound.
    pub(super) max_bytes: Option<u64>,
    /// `None`: until the container or the client ends it.
    pub(super) seconds: Option<u64>,
    /// Bytes kept of each frame.
    pub(super) snaplen: u32,
}

impl CaptureRequest {
    /// Parses the query of a request. An error names the key and what is allowed.
    pub(super) fn parse(query: &str) -> Result<Self, ApiError> {
        let mut request =
            Self { filter: None, max_bytes: None, seconds: None, snaplen: SNAPLEN_RANGE.1 };
        let mut seen = Vec::new();
        for (key, value) in query::pairs(query)? {
            let bad = |why: String| {
                ApiError::invalid("bad_value", format!("{key}: {why}")).key(key.clone())
            };
            // Which of the two holds would be a guess.
            if seen.contains(&key) {
                return Err(bad("is given twice".to_owned()));
            }
            match key.as_str() {
                "filter" => request.filter = Some(Filter::parse(&value).map_err(bad)?),
                "max_bytes" => {
                    let bytes = parse_size(&value).map_err(bad)?;
                    if bytes < CAPTURE_BYTES_MIN {
                        let message = format!("{value} must be at least {CAPTURE_BYTES_MIN} bytes");
                        return Err(bad(message));
                    }
                    request.max_bytes = Some(bytes);
                }
                "seconds" => request.seconds = Some(number(&value, (1, u32::MAX)).map_err(bad)?),
                "snaplen" => {
                    let snaplen = number(&value, SNAPLEN_RANGE).map_err(bad)?;
                    request.snaplen = snaplen as u32;
                }
                _ => {
                    let message = format!("{key:?}: unknown key{}", hint(&key, &CAPTURE_KEYS));
                    return Err(ApiError::invalid("unknown_key", message).key(key));
                }
            }
            seen.push(key);
        }
        Ok(request)
    }
}

/// A number within these bounds.
fn number(text: &str, (least, most): (u32, u32)) -> Result<u64, String> {
    let number = text.parse::<u32>().ok().filter(|number| (least..=most).contains(number));
    number.map(u64::from).ok_or_else(|| format!("{text:?} must be a number from {least} to {most}"))
}

/// The body of an answer: whole blocks, as they are captured. Dropping it ends the capture, and the server drops it as
/// soon as the client closes the connection.
#[derive(Debug)]
pub(super) struct Blocks {
    stream: Stream,
    /// Ends the capture.
    until: Option<Pin<Box<Sleep>>>,
    /// Set until the first poll.
    lasts: Option<Duration>,
}

impl Blocks {
    /// A body that ends after this time, which starts when the answer does.
    pub(super) fn new(stream: Stream, lasts: Option<Duration>) -> Self {
        Self { stream, until: None, lasts }
    }
}

impl Body for Blocks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // A timer can be made only here, on a thread of the runtime.
        if let Some(lasts) = self.lasts.take() {
            self.until = Some(Box::pin(sleep(lasts)));
        }
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            self.until = None;
            self.stream.end();
        }
        // After the timer: an end of it shows in the same poll.
        let next = self.stream.poll_next(cx);
        next.map(|blocks| blocks.map(|blocks| Ok(Frame::data(Bytes::from(blocks)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_a_request_or_names_what_is_wrong() {
        let parsed =
            CaptureRequest::parse("filter=tcp+port%2080&max_bytes=1MiB&seconds=3&snaplen=96");
        let parsed = parsed.unwrap();
        assert_eq!(parsed.filter.unwrap().to_string(), "tcp port 80");
        assert_eq!(
            (parsed.max_bytes, parsed.seconds, parsed.snaplen),
            (Some(1 << 20), Some(3), 96)
        );
        let all = CaptureRequest::parse("").unwrap();
        assert_eq!((all.filter, all.max_bytes, all.snaplen), (None, None, SNAPLEN_RANGE.1));
        for (query, key, expected) in [
            ("filter=prt+80", "filter", "\"prt\" is not allowed here; did you mean port?"),
            ("filter=", "filter", "empty"),
            ("max_bytes=1", "max_bytes", "at least 4096"),
            ("max_bytes=1x", "max_bytes", "unknown unit"),
            ("seconds=0", "seconds", "1 to 4294967295"),
            ("snaplen=63", "snaplen", "64 to 262144"),
            ("snaplen=64&snaplen=65", "snaplen", "twice"),
            ("second=1", "second", "did you mean seconds?"),
            ("seconds", "seconds", "\"\""),
        ] {
            let error = CaptureRequest::parse(query).unwrap_err();
            assert_eq!((error.status, error.body.key.as_deref()), (400, Some(key)), "{query}");
            assert!(error.body.message.contains(expected), "{query}: {error}");
        }
        assert_eq!(CaptureRequest::parse("filter=%f").unwrap_err().status, 400);
    }
}
