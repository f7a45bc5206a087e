//! Handles a received frame: `wire/parse.rs` classifies it, this file answers or counts all but TCP segments.

use skbudget_controller::Instant;

use super::Container;
use super::Ctx;
use crate::counters::Stat;
use crate::io::vnet::VnetHdr;
use crate::wire::addresses::Tuple;
use crate::wire::parse::{self, Answer, Ingress};
use crate::wire::reassembly::{Fragment, Outcome};
use crate::wire::seq::Seq;
use crate::wire::{arp, icmp, ndp};

impl Container {
    /// Handles a frame of the guest, from the Ethernet header on; the vnet header is separate. Malformed frames are
    /// counted and dropped.
    pub fn on_frame(&mut self, cx: &mut Ctx<'_>, vnet: &VnetHdr, frame: &[u8]) {
        self.totals.frames_from_guest += 1;
        if let Some(mac) = parse::guest_mac(frame)
            && self.egress.guest_mac != Some(mac)
        {
            self.egress.guest_mac = Some(mac);
            // Flows may be blocked only because this address was unknown.
            self.ready.unblock();
        }
        match parse::parse(&self.config, vnet, frame) {
            Ingress::Tcp(tuple, seg) => self.on_segment(cx, tuple, &seg),
            Ingress::Fragment(fragment) => self.on_fragment(cx, &fragment),
            other => self.on_other(cx, other),
        }
    }

    /// Handles everything but segments and fragments.
    fn on_other(&mut self, cx: &mut Ctx<'_>, ingress: Ingress<'_>) {
        match ingress {
            Ingress::Datagram(datagram) => self.on_datagram(cx, &datagram),
            Ingress::Configure { from, message } => self.on_client_message(cx, from, message),
            Ingress::PathMtu { tuple, seq, mtu } => self.on_path_mtu(&tuple, seq, mtu),
            Ingress::RouterSolicit { from } => self.on_router_solicitation(cx, from),
            Ingress::Answer(answer, stat) => {
                // ARP is not rate-limited: without an answer the guest can send nothing at all.
                if matches!(answer, Answer::Arp(_)) || self.icmp_allowed(cx.now) {
                    self.stats.add(stat);
                    self.egress.answer(cx.device, &answer);
                }
            }
            Ingress::Refuse(answer, stat) => {
                // The drop is counted even if the rate limit suppresses the answer.
                self.stats.add(stat);
                if self.icmp_allowed(cx.now) {
                    self.egress.answer(cx.device, &answer);
                }
            }
            Ingress::Drop(stat) => self.stats.add(stat),
            Ingress::Tcp(..) | Ingress::Fragment(_) | Ingress::Nothing => {}
        }
    }

    /// Stores a fragment; a complete datagram is handled as if it had arrived whole.
    fn on_fragment(&mut self, cx: &mut Ctx<'_>, fragment: &Fragment<'_>) {
        match self.reassembly.on_fragment(fragment, &mut cx.member(self.member)) {
            Outcome::Held => {}
            Outcome::Dropped(stat) => self.stats.add(stat),
            Outcome::Whole(datagram) => {
                self.stats.add(Stat::ReasmOKs);
                match parse::parse_whole(&self.config, &datagram) {
                    Ingress::Tcp(tuple, seg) => self.on_segment(cx, tuple, &seg),
                    other => self.on_other(cx, other),
                }
            }
        }
    }

    /// Drops incomplete datagrams that are too old.
    pub(super) fn expire_fragments(&mut self, cx: &mut Ctx<'_>) {
        while let Some(expired) = self.reassembly.expire(&mut cx.member(self.member)) {
            self.stats.add(Stat::ReasmTimeout);
            // No Time Exceeded is sent unless fragment zero was received (RFC 792, RFC 8200 section 4.5).
            if !expired.begin.is_empty() && self.icmp_allowed(cx.now) {
                self.egress.answer(cx.device, &icmp::reassembly_timeout(&expired));
            }
        }
    }

    /// A router or tunnel behind the guest reports that our segments do not fit its link: lowers the flow's MSS if the
    /// report quotes a segment in flight.
    fn on_path_mtu(&mut self, tuple: &Tuple, seq: Seq, mtu: u32) {
        let index = self.flows.find(tuple);
        let flow = index.and_then(|index| self.flows.index_mut(index));
        match flow.is_some_and(|flow| flow.path_mtu(mtu, seq)) {
            true => self.stats.add(Stat::PathMtuLowered),
            false => return self.stats.add(Stat::PathMtuIgnored),
        }
        // The flow's next service retransmits the lost data in smaller segments.
        index.into_iter().for_each(|index| self.mark(index));
    }

    /// Requests the guest's hardware address. Any frame in answer carries it.
    pub(super) fn request_guest_mac(&mut self, cx: &mut Ctx<'_>, ipv6: bool) {
        // The family of the waiting flow: a guest without IPv6 answers no solicitation.
        let question = match &self.config.ipv6 {
            Some(net) if ipv6 => ndp::solicitation(&self.config, net),
            _ => arp::who_has(&self.config),
        };
        self.egress.answer(cx.device, &question);
    }

    pub(super) fn icmp_allowed(&mut self, now: Instant) -> bool {
        let allowed = self.limits.allow_icmp(now);
        if !allowed {
            self.stats.add(Stat::IcmpRateLimited);
        }
        allowed
    }
}
