//! The command that captures a container's frames.
#![expect(missing_docs, reason = "clap prints doc comments: a comment here is a help text")]

use std::path::PathBuf;

use clap::Args;
use skbudget_stack::tap::SNAPLEN_RANGE;

use super::ClientArgs;
use super::values::parse_name;
use crate::capture::{CAPTURE_BYTES_MIN, Filter};
use crate::units::parse_size;

const CAPTURE_HELP: &str = "\
The capture is in the pcapng format, with every frame as it crosses the container's device: super-frames whole (up to \
64 KiB with offload), checksums as far as the sender computed them. It ends with the container, at --seconds or \
--max-bytes, or when the command is interrupted. A reader that is slower than the traffic loses frames, never the \
container: the capture and the last line of this command state their number.

Filters have the words of tcpdump: host ADDRESS, net CIDR, port N or N-M, each also after src or dst; ip, ip6, arp, \
icmp, icmp6, tcp, udp, also as in `tcp port 80`; and, or, not, parentheses. Protocol and ports are those of the packet \
itself, not of one that an ICMP error quotes; fragments after the first have no ports.

To watch: skbudget capture NAME -w - | tshark -r -     (or tcpdump -nr -, wireshark -k -i -)

Exit code: 0, 1 the daemon refused or is not there or the file cannot be written, 2 the command line is wrong.";

#[derive(Debug, Args)]
#[command(after_help = CAPTURE_HELP)]
pub struct CaptureArgs {
    /// Name of the container
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: String,

    /// File to write; - is stdout
    #[arg(short, long, value_name = "FILE|-")]
    pub write: PathBuf,

    /// Only frames that this expression selects, such as `tcp port 80 and not host 10.0.2.2`
    #[arg(long, value_name = "EXPR", value_parser = Filter::parse)]
    pub filter: Option<Filter>,

    /// End before the capture is longer than this
    #[arg(long, value_name = "SIZE", value_parser = parse_length)]
    pub max_bytes: Option<u64>,

    /// End after this time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: Option<u32>,

    /// Bytes to keep of each frame, 64 to 262144 [default: all]
    #[arg(long, value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(i64::from(SNAPLEN_RANGE.0)..=i64::from(SNAPLEN_RANGE.1)))]
    pub snaplen: Option<u32>,

    #[command(flatten)]
    pub client: ClientArgs,
}

/// Length of a capture.
fn parse_length(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes < CAPTURE_BYTES_MIN {
        return Err(format!("must be at least {CAPTURE_BYTES_MIN} bytes"));
    }
    Ok(bytes)
}
