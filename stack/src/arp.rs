//! ARP (RFC 826): the guest finds a neighbour whatever address of the subnet it asks for, except its own.

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::ingress::{Answer, Ingress};

/// Every address of the subnet but the guest's own is ours, so that the guest finds a neighbour whatever it asks.
pub(crate) fn on_packet<'a>(config: &ContainerConfig, bytes: &[u8]) -> Ingress<'a> {
    let parsed = ArpPacket::new_checked(bytes).and_then(|p| ArpRepr::parse(&p));
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = parsed
    else {
        return Ingress::Drop(Stat::DropArp);
    };
    // A probe (RFC 5227) asks for an address from 0.0.0.0: answering it for the guest's own would be a conflict.
    if operation != ArpOperation::Request || target_protocol_addr == config.guest_ip {
        return Ingress::Nothing;
    }
    if !config.in_subnet(target_protocol_addr) {
        return Ingress::Drop(Stat::DropArp);
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(config.our_mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    Ingress::Answer(Answer::Arp(reply), Stat::ArpAnswered)
}

/// Asks the guest for its hardware address.
pub(crate) fn who_has(config: &ContainerConfig) -> Answer {
    Answer::Arp(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(config.our_mac),
        source_protocol_addr: config.gateway_ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: config.guest_ip,
    })
}
