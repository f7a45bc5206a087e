//! Programs that configure the network of their container: DHCP and DHCPv6 clients, and the kernel by advertisements.

use std::process::Command;

use crate::lacks;
use crate::network::Echo;
use crate::support::{BINARY, TempFile, script, succeed, text};

/// Removes what the start configured: from here on the container configures itself.
const FORGET: &str = "ip addr flush dev tap0 scope global; ip route flush dev tap0; ip neigh flush dev tap0 nud all\n";

/// A folder for the files of a client.
const FOLDER: &str = "dir=$(mktemp -d); trap 'rm -rf $dir' EXIT\n";

/// Runs a script after [`FORGET`], with all rights over the container's network.
fn configured(options: &[&str], lines: &str) -> String {
    let options = [&["--privileged"], options].concat();
    let output = script(&options, &[FOLDER, "set -e\n", FORGET, lines].concat());
    println!("{}", text(&output.stderr));
    succeed(&output)
}

/// A line of a script that fails without the echo of a UDP server on the host's loopback.
fn echo_through(gateway: &str, port: u16) -> String {
    let family = if gateway.contains(':') { "AF_INET6" } else { "AF_INET" };
    format!(
        "python3 -c \"import socket; s = socket.socket(socket.{family}, socket.SOCK_DGRAM); s.settimeout(30); \
         s.connect(('{gateway}', {port})); s.send(b'echo'); print(s.recv(9).decode())\"\n"
    )
}

/// Sets what dhclient reports, and prints it; the file of the distribution would replace the host's resolv.conf.
const DHCLIENT_SCRIPT: &str = r#"#!/bin/bash
case $reason in
BOUND|RENEW|REBIND|REBOOT)
    ip addr replace $new_ip_address/$new_subnet_mask dev $interface
    ip link set $interface mtu $new_interface_mtu
    ip route replace default via $new_routers
    echo "$new_ip_address $new_subnet_mask $new_routers $new_domain_name_servers $new_interface_mtu $new_host_name" ;;
BOUND6|REBIND6|RENEW6|REBOOT6)
    ip -6 addr replace $new_ip6_address/64 dev $interface nodad
    echo "$new_ip6_address $new_dhcp6_name_servers" ;;
RELEASE|STOP|RELEASE6|STOP6) echo "$reason" ;;
esac
exit 0
"#;

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn dhclient_leases_renews_and_releases() {
    if lacks("dhclient") {
        return;
    }
    let echo = Echo::on("127.0.0.1:0");
    let (file, name) = (TempFile::new("dhclient"), "lease_of.web");
    std::fs::write(&file.0, DHCLIENT_SCRIPT).unwrap();
    let lines = format!(
        "chmod +x {0}; files=\"-sf {0} -lf $dir/leases -pf $dir/pid -cf /dev/null\"
         dhclient -1 -v $files tap0
         {1}
         kill $(cat $dir/pid); while kill -0 $(cat $dir/pid) 2>/dev/null; do sleep 0.1; done
         ip addr flush dev tap0 scope global
         # The lease of the file is confirmed (REQUEST without DISCOVER), then released.
         dhclient -1 -v $files tap0; {1}
         dhclient -r -v $files tap0",
        file.path(),
        echo_through("10.0.2.2", echo.port())
    );
    let said = configured(&["--mtu", "1400", "--name", name], &lines);
    let lease = "10.0.2.100 255.255.255.0 10.0.2.2 10.0.2.3 1400 lease-of.web";
    assert_eq!(said.lines().collect::<Vec<_>>(), [lease, "echo", lease, "echo", "RELEASE"]);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn udhcpc_leases_with_and_without_offload() {
    if lacks("udhcpc") {
        return;
    }
    let echo = Echo::on("127.0.0.1:0");
    let file = TempFile::new("udhcpc");
    let program = "#!/bin/bash
if [[ $1 == bound ]]; then
    ip addr add $ip/$mask dev $interface; ip route add default via $router
    echo $ip/$mask $router $dns $mtu $lease
fi";
    std::fs::write(&file.0, program).unwrap();
    for offload in ["on", "off"] {
        // With the broadcast flag too.
        for flag in ["", "-B"] {
            let lines = format!(
                "chmod +x {0}; udhcpc -i tap0 -s {0} -q -f -n -t 5 {flag} -O mtu >$dir/out 2>$dir/err ||
                     cat $dir/err >&2
                 cat $dir/out; {1}",
                file.path(),
                echo_through("10.0.2.2", echo.port())
            );
            let said = configured(&["--offload", offload, "--mtu", "1500"], &lines);
            assert_eq!(
                said, "10.0.2.100/24 10.0.2.2 10.0.2.3 1500 3600\necho\n",
                "{offload} {flag}"
            );
        }
    }
}

/// dhcpcd configures the device by itself: address, routes, MTU, and IPv6 by advertisements and DHCPv6.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn dhcpcd_configures_both_families() {
    if lacks("dhcpcd") {
        return;
    }
    let (v4, v6) = (Echo::on("127.0.0.1:0"), Echo::on("[::1]:0"));
    let lines = format!(
        "mkdir -p $dir/db; mount --bind $dir/db /var/lib/dhcpcd; mount -t tmpfs tmpfs /run
         cat >$dir/conf <<END
noarp
duid
option interface_mtu, domain_name_servers, domain_search
noipv6rs
interface tap0
ipv6rs
ia_na 1
END
         dhcpcd -f $dir/conf -c /bin/true --waitip=46 -t 60 tap0 >&2
         for n in $(seq 300); do ip -6 addr show dev tap0 | grep -q 'fd00::100/' && break; sleep 0.1; done
         ip -o addr show dev tap0 scope global | grep -o 'inet6* [^ ]*'; ip route show default | grep -o 'via [^ ]*'
         ip -6 route show default | grep -o 'via [^ ]*' | uniq
         {}{}dhcpcd -f $dir/conf -x tap0 >&2",
        echo_through("10.0.2.2", v4.port()),
        echo_through("fd00::2", v6.port()),
    );
    let said = configured(&["--mtu", "1500"], &lines);
    for expected in ["inet 10.0.2.100/24", "inet6 fd00::100/128", "via 10.0.2.2", "via fe80::2"] {
        assert!(said.contains(expected), "{expected} in\n{said}");
    }
    assert!(said.ends_with("echo\necho\n"), "{said}");
}

/// The container's own kernel forms an address (SLAAC), and dhclient gets the container's by DHCPv6.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_kernel_forms_an_address_and_dhclient_gets_one() {
    let echo = Echo::on("[::1]:0");
    let lines = format!(
        "cd /proc/sys/net/ipv6/conf/tap0; grep -x 0 accept_ra >/dev/null
         ip link set tap0 down; echo 1 >accept_ra; echo 1 >autoconf; echo 0 >addr_gen_mode
         ip link set tap0 up; show='ip -6 -o addr show dev tap0 scope global'
         for n in $(seq 300); do $show -tentative | grep -q fd00 && break; sleep 0.1; done
         $show | grep -o 'fd00::[^ ]*'
         ip -6 route show default | grep -o 'via [^ ]* dev tap0 proto ra'; {}cd $dir",
        echo_through("fd00::2", echo.port())
    );
    let file = TempFile::new("dhclient6");
    std::fs::write(&file.0, DHCLIENT_SCRIPT).unwrap();
    let more = format!(
        "\nchmod +x {0}; dhclient -6 -1 -v -sf {0} -lf $dir/leases -pf $dir/pid -cf /dev/null tap0
         dhclient -6 -r -v -sf {0} -lf $dir/leases -pf $dir/pid -cf /dev/null tap0",
        file.path()
    );
    let has_dhclient = !lacks("dhclient");
    let said = configured(&[], &[&lines[..], if has_dhclient { &more[..] } else { "" }].concat());
    let said: Vec<&str> = said.lines().collect();
    // An address from the hardware address: 64 bits of prefix, then those of the device.
    assert!(said[0].contains("ff:fe") && said[0].ends_with("/64"), "{said:?}");
    assert_eq!(said[1..3], ["via fe80::2 dev tap0 proto ra", "echo"], "{said:?}");
    if has_dhclient {
        assert_eq!(said[3..], ["fd00::100 fd00::3", "RELEASE6"], "{said:?}");
    }
}

/// The relay may not read the host's file: it does so before it is confined.
#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_search_domains_of_the_host_are_options() {
    if lacks("udhcpc") {
        return;
    }
    let (resolv, file) = (TempFile::new("resolv"), TempFile::new("udhcpc"));
    std::fs::write(&resolv.0, "nameserver 127.0.0.1\nsearch a.example b.example\n").unwrap();
    std::fs::write(&file.0, "#!/bin/bash\n[[ $1 != bound ]] || echo $domain, $search\n").unwrap();
    let inside = format!(
        "chmod +x {0}; udhcpc -i tap0 -s {0} -q -f -n -t 5 -O search -O domain 2>/dev/null",
        file.path()
    );
    let line = format!(
        "mount --bind {} /etc/resolv.conf && exec {BINARY} run --privileged -- bash -c '{inside}'",
        resolv.path()
    );
    let output = Command::new("unshare").args(["--mount", "bash", "-c", &line]).output().unwrap();
    assert_eq!(succeed(&output), "a.example, a.example b.example\n");
}
