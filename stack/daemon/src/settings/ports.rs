//! Published ports: what they need of a container's budget.

use std::collections::BTreeMap;

use skbudget_controller::{Limits, PAGE_SIZE};
use skbudget_stack::{ContainerConfig, PUBLISHED_UDP_BYTES};

use super::Invalid;
use crate::cli::{Protocol, PublishArg};
use crate::listener::Backlog;
use crate::units::Size;

/// Refuses ports with backlogs that do not fit: they are charged from the start, beside what every container needs.
pub(super) fn holds_backlogs(limits: Limits, flow: u64, ports: usize) -> Result<(), Invalid> {
    let backlogs = |limits| Backlog::fit(limits, ports).bytes() * ports as u64;
    let needs = |limits: Limits| {
        let hard = limits.hard_bytes();
        (ContainerConfig::dev_queue_bytes(Some(hard)) + flow + backlogs(limits)).div_ceil(PAGE_SIZE)
    };
    if ports == 0 || needs(limits) <= limits.hard {
        return Ok(());
    }
    // The need grows with the limit, but by less, so this ends at the smallest limit that holds it all.
    let mut least = limits;
    while needs(least) > least.hard {
        least.hard = needs(least);
    }
    let (needed, hard) = (Size(backlogs(limits)), Size(limits.hard_bytes()));
    let what = format!(
        ": the backlogs of {ports} ports need {needed}, which does not fit --hard {hard}: publish fewer ports, or raise \
         --hard to at least {}",
        Size(least.hard_bytes())
    );
    Err(Invalid::new("publish", what))
}

/// Refuses UDP ports that share a port of the container, need IPv6 where there is none, or do not fit their part of the
/// budget: their sockets are charged from the start.
pub(crate) fn check_udp_ports(
    limits: Limits,
    container: &ContainerConfig,
    publish: &[PublishArg],
) -> Result<(), Invalid> {
    let refused = |what| Err(Invalid::new("publish", what));
    let mut leads_to = BTreeMap::new();
    for port in publish.iter().filter(|port| port.protocol == Protocol::Udp) {
        let PublishArg { host, guest_port, .. } = *port;
        if host.is_ipv6() && container.ipv6.is_none() {
            return refused(format!(" {host}:{guest_port}/udp: the container has no IPv6"));
        }
        if let Some(other) = leads_to.insert((host.is_ipv6(), guest_port), host) {
            return refused(format!(
                ": UDP ports {other} and {host} both lead to port {guest_port} of the container, which could not tell \
                 their clients apart: publish one of them"
            ));
        }
    }
    let need = leads_to.len() as u64 * PUBLISHED_UDP_BYTES;
    if need <= limits.hard_bytes() / 8 {
        return Ok(());
    }
    let (ports, hard) = (leads_to.len(), Size(limits.hard_bytes()));
    let least = Size((need * 8).next_multiple_of(PAGE_SIZE));
    refused(format!(
        ": {ports} UDP ports need {}, more than an eighth of --hard {hard}: publish fewer ports, or raise --hard to at \
         least {least}",
        Size(need)
    ))
}
