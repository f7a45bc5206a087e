//! ARP (RFC 826): the stack answers for every address of the subnet except the guest's own.

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use crate::config::ContainerConfig;
use crate::counters::Stat;
use crate::wire::parse::{Answer, Ingress};

/// Handles an ARP packet. Every address of the subnet but the guest's own resolves to our hardware address, so packets
/// to any of them reach the stack, which then answers them with an error or relays them.
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
    // A probe (RFC 5227) has the source 0.0.0.0. An answer for the guest's own address would signal a conflict.
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

/// Requests the guest's hardware address.
pub(crate) fn who_has(config: &ContainerConfig) -> Answer {
    Answer::Arp(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(config.our_mac),
        source_protocol_addr: config.gateway_ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: config.guest_ip,
    })
}
