//! A flow as one line of text, in the spirit of `ss -tmi`.

use std::net::SocketAddr;

use super::{FlowProtocol, FlowReport, TcpReport};

/// Names of the columns.
pub(crate) const HEAD: [&str; 7] =
    ["PROTO", "STATE", "RECV-Q", "SEND-Q", "GUEST", "PEER", "DETAILS"];

/// The columns of a flow. Numbers are exact, in bytes; of the names in `skmem` those of the kernel's `SK_MEMINFO`.
pub(crate) fn row(flow: &FlowReport) -> [String; 7] {
    let protocol = match flow.protocol {
        FlowProtocol::Tcp => "tcp",
        FlowProtocol::Udp => "udp",
        FlowProtocol::Icmp => "icmp",
    };
    [
        protocol.to_owned(),
        flow.state.clone(),
        flow.recv_queue_bytes.to_string(),
        flow.send_queue_bytes.to_string(),
        end(flow.protocol, Some(flow.guest)),
        end(flow.protocol, flow.peer),
        details(flow),
    ]
}

/// Address and port. An echo request has an identifier in the guest's network, and no port elsewhere.
fn end(protocol: FlowProtocol, end: Option<SocketAddr>) -> String {
    match end {
        None => "*:*".to_owned(),
        Some(end) if protocol == FlowProtocol::Icmp && end.port() == 0 => end.ip().to_string(),
        Some(end) => end.to_string(),
    }
}

/// What `ss` prints with -m and -i, as far as a flow has it.
fn details(flow: &FlowReport) -> String {
    let FlowReport { rcvbuf_bytes, sndbuf_bytes, fwd_bytes, wmem_bytes, sock_bytes, drops, .. } =
        flow;
    // The stack sends at once (t) and processes segments as they arrive (bl): both are empty between turns.
    let received = flow.rmem_bytes + flow.ofo_bytes;
    let skmem = format!(
        "skmem:(r{received},rb{rcvbuf_bytes},t0,tb{sndbuf_bytes},f{fwd_bytes},w{wmem_bytes},\
         o{sock_bytes},bl0,d{drops})"
    );
    // A mapping has no connection with the guest.
    let tcp = flow.tcp.as_ref().map(connection).unwrap_or_default();
    let published = if flow.published { " published" } else { "" };
    let FlowReport { host_bytes, bytes_from_guest, bytes_to_guest, idle_ms, .. } = flow;
    format!(
        "{skmem} host:{host_bytes}{tcp} from_guest:{bytes_from_guest} to_guest:{bytes_to_guest} \
         idle:{idle_ms}ms{published}"
    )
}

/// The part of the details that only a TCP connection has.
fn connection(tcp: &TcpReport) -> String {
    // As ss: milliseconds with three digits behind the point.
    let ms = |us: u64| format!("{}.{:03}", us / 1000, us % 1000);
    let TcpReport { mss_bytes, cwnd_bytes, unacked_bytes, retransmits, .. } = tcp;
    let TcpReport { snd_wnd_bytes, rcv_wnd_bytes, .. } = tcp;
    let ssthresh = tcp.ssthresh_bytes.map(|bytes| format!(" ssthresh:{bytes}")).unwrap_or_default();
    format!(
        " rto:{} rtt:{}/{} mss:{mss_bytes} cwnd:{cwnd_bytes}{ssthresh} unacked:{unacked_bytes} \
         retrans:{retransmits} snd_wnd:{snd_wnd_bytes} rcv_wnd:{rcv_wnd_bytes}",
        ms(tcp.rto_us),
        ms(tcp.rtt_us),
        ms(tcp.rttvar_us),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_one_line_with_the_names_of_ss() {
        let flow = FlowReport {
            protocol: FlowProtocol::Tcp,
            state: "ESTAB".to_owned(),
            guest: "10.0.2.100:40000".parse().unwrap(),
            peer: Some("127.0.0.1:80".parse().unwrap()),
            published: true,
            recv_queue_bytes: 1,
            send_queue_bytes: 2,
            charged_bytes: 30_720,
            rmem_bytes: 4096,
            ofo_bytes: 8192,
            wmem_bytes: 4096,
            fwd_bytes: 0,
            sock_bytes: 1536,
            host_bytes: 12_800,
            rcvbuf_bytes: 16_128,
            sndbuf_bytes: 16_129,
            drops: 3,
            bytes_from_guest: 5,
            bytes_to_guest: 6,
            idle_ms: 7,
            tcp: Some(TcpReport {
                rtt_us: 1250,
                rttvar_us: 20,
                rto_us: 201_250,
                mss_bytes: 1448,
                cwnd_bytes: 14_480,
                ssthresh_bytes: Some(2896),
                unacked_bytes: 2,
                retransmits: 1,
                snd_wnd_bytes: 64_240,
                rcv_wnd_bytes: 16_128,
            }),
        };
        let cells = row(&flow);
        assert_eq!(cells[..6], ["tcp", "ESTAB", "1", "2", "10.0.2.100:40000", "127.0.0.1:80"]);
        assert_eq!(
            cells[6],
            "skmem:(r12288,rb16128,t0,tb16129,f0,w4096,o1536,bl0,d3) host:12800 rto:201.250 \
             rtt:1.250/0.020 mss:1448 cwnd:14480 ssthresh:2896 unacked:2 retrans:1 snd_wnd:64240 \
             rcv_wnd:16128 from_guest:5 to_guest:6 idle:7ms published"
        );
        let echo = FlowReport {
            protocol: FlowProtocol::Icmp,
            peer: Some("192.0.2.1:0".parse().unwrap()),
            tcp: None,
            published: false,
            ..flow
        };
        assert_eq!(row(&echo)[5], "192.0.2.1");
        assert!(row(&echo)[6].ends_with("host:12800 from_guest:5 to_guest:6 idle:7ms"));
        assert_eq!(row(&FlowReport { peer: None, ..echo })[5], "*:*");
    }
}
