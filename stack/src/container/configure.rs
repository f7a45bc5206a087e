//! How a guest configures itself: answers to its DHCP and DHCPv6 clients, and router advertisements.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Container, Ctx};
use crate::counters::Stat;
use crate::dhcp::{self, Reply};
use crate::io::datagram::IpFields;
use crate::wire::addresses::Tuple;
use crate::wire::icmp::HOP_LIMIT;
use crate::wire::ndp;

/// Header fields of answers.
const FIELDS: IpFields = IpFields { hop_limit: HOP_LIMIT, traffic_class: 0, dont_fragment: false };

impl Container {
    /// Answers a message of a DHCP client, or of a DHCPv6 client by the family of `from`.
    pub(super) fn on_client_message(&mut self, cx: &mut Ctx<'_>, from: IpAddr, message: &[u8]) {
        if !self.limits.allow_dhcp(cx.now) {
            return self.stats.add(Stat::DhcpRateLimited);
        }
        // Learnt from the frame of this message, unless its source is no address of one device.
        let mac = self.egress.guest_mac.map_or([0; 6], |mac| mac.0);
        let reply = match from {
            IpAddr::V4(_) => dhcp::answer_v4(&self.config, &mut self.leases, message, cx.now),
            IpAddr::V6(ip) => {
                dhcp::answer_v6(&self.config, &mut self.leases, (ip, mac), message, cx.now)
            }
        };
        let Reply { addresses, bytes, stat } = match reply {
            Ok(reply) => reply,
            Err(stat) => return self.stats.add(stat),
        };
        self.stats.add(stat);
        let (client, server): (SocketAddr, SocketAddr) = addresses;
        // A full device loses it: the client sends its message again.
        self.egress.complete_datagram(cx.device, &Tuple::new(client, server), FIELDS, &bytes);
    }

    /// Answers a router solicitation with an advertisement, at most one in three seconds.
    pub(super) fn on_router_solicitation(&mut self, cx: &mut Ctx<'_>, from: Ipv6Addr) {
        if !self.neighbour.may_advertise(cx.now) {
            return self.stats.add(Stat::RouterSolicitsIgnored);
        }
        self.advertise(cx, from);
    }

    /// Sends an advertisement to `to`, all nodes if that is unspecified, and plans the next one.
    fn advertise(&mut self, cx: &mut Ctx<'_>, to: Ipv6Addr) {
        let Some(net) = &self.config.ipv6 else { return };
        self.stats.add(Stat::RouterAdverts);
        let advertisement = ndp::router_advertisement(&self.config, net, to);
        self.egress.answer(cx.device, &advertisement);
        self.neighbour.plan_advertisement(cx.now, self.random.next());
    }

    /// Sends the advertisement that is due. There is none for a guest that never sent a solicitation: it does not use
    /// them. For others the route and the addresses would expire.
    pub(super) fn advertise_again(&mut self, cx: &mut Ctx<'_>) {
        if self.neighbour.next_advertisement().is_some_and(|at| at <= cx.now) {
            self.advertise(cx, Ipv6Addr::UNSPECIFIED);
        }
    }
}
