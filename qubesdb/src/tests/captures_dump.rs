//! Section 2 of the recordings: the dump, row by row. Padding 56 c3 a8 is what the recorded client had sent.

use super::{cat, entries, feed, requesting, sent};
use crate::{Client, Event, Limits};
use alloc::vec::Vec;

/// The recorded request, of which dom0 returned the padding.
const PADDING: &[u8] = &[0x56, 0xc3, 0xa8];

#[test]
fn captures_2_row_01_request() {
    let mut client = Client::new(Limits::default());
    client.connected();
    assert_eq!(sent(&mut client), cat(&[&[0x02], &[0; 64], &[0; 3], &[0; 4]]));
}

/// One row: its bytes arrive in a dump, are an entry and nothing else, and the row has the recorded length.
macro_rules! dump_rows {
    ($($name:ident: $bytes:expr, $total:literal => $path:literal = $value:literal;)*) => {
        $(
            #[test]
            fn $name() {
                let row = cat(&$bytes);
                assert_eq!(row.len(), $total);
                let mut client = requesting();
                assert_eq!(feed(&mut client, &row), []);
                assert!(client.store().is_empty(), "not before the end of the dump");
                assert_eq!(feed(&mut client, &end_mark())[0], Event::Dumped);
                let value: &str = $value;
                assert_eq!(entries(&client), [($path.into(), value.into())]);
                assert_eq!(sent(&mut client), [], "entries of the dump are not answered");
            }
        )*

        /// All rows in order, as recorded.
        fn dump() -> Vec<u8> {
            let rows = [$(cat(&$bytes)),*];
            rows.concat()
        }
    };
}

dump_rows! {
    captures_2_row_02_type:
        [&[0x0b], b"/type", &[0; 59], PADDING, &[0x0c, 0x00, 0x00, 0x00], b"StandaloneVM"], 84
        => "/type" = "StandaloneVM";
    captures_2_row_03_qubes_vm_updateable:
        [&[0x0b], b"/qubes-vm-updateable", &[0; 44], PADDING, &[0x04, 0x00, 0x00, 0x00], b"True"], 76
        => "/qubes-vm-updateable" = "True";
    captures_2_row_04_qubes_vm_type:
        [&[0x0b], b"/qubes-vm-type", &[0; 50], PADDING, &[0x07, 0x00, 0x00, 0x00], b"ProxyVM"], 79
        => "/qubes-vm-type" = "ProxyVM";
    captures_2_row_05_qubes_vm_persistence:
        [&[0x0b], b"/qubes-vm-persistence", &[0; 43], PADDING, &[0x04, 0x00, 0x00, 0x00], b"full"], 76
        => "/qubes-vm-persistence" = "full";
    captures_2_row_06_qubes_timezone:
        [&[0x0b], b"/qubes-timezone", &[0; 49], PADDING, &[0x0d, 0x00, 0x00, 0x00], b"Europe/Berlin"], 85
        => "/qubes-timezone" = "Europe/Berlin";
    captures_2_row_07_qubes_service_meminfo_writer:
        [&[0x0b], b"/qubes-service/meminfo-writer", &[0; 35], PADDING, &[0x01, 0x00, 0x00, 0x00], b"0"], 73
        => "/qubes-service/meminfo-writer" = "0";
    captures_2_row_08_qubes_secondary_dns:
        [&[0x0b], b"/qubes-secondary-dns", &[0; 44], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.139.1.2"], 82
        => "/qubes-secondary-dns" = "10.139.1.2";
    captures_2_row_09_qubes_random_seed:
        [&[0x0b], b"/qubes-random-seed", &[0; 46], PADDING, &[0x10, 0x00, 0x00, 0x00], b"aGVsbG8gd29ybGQ="], 88
        => "/qubes-random-seed" = "aGVsbG8gd29ybGQ=";
    captures_2_row_10_qubes_primary_dns:
        [&[0x0b], b"/qubes-primary-dns", &[0; 46], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.139.1.1"], 82
        => "/qubes-primary-dns" = "10.139.1.1";
    captures_2_row_11_qubes_netvm_secondary_dns:
        [&[0x0b], b"/qubes-netvm-secondary-dns", &[0; 38], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.139.1.2"], 82
        => "/qubes-netvm-secondary-dns" = "10.139.1.2";
    captures_2_row_12_qubes_netvm_primary_dns:
        [&[0x0b], b"/qubes-netvm-primary-dns", &[0; 40], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.139.1.1"], 82
        => "/qubes-netvm-primary-dns" = "10.139.1.1";
    captures_2_row_13_qubes_netvm_network:
        [&[0x0b], b"/qubes-netvm-network", &[0; 44], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.137.0.6"], 82
        => "/qubes-netvm-network" = "10.137.0.6";
    captures_2_row_14_qubes_netvm_netmask:
        [&[0x0b], b"/qubes-netvm-netmask", &[0; 44], PADDING, &[0x0d, 0x00, 0x00, 0x00], b"255.255.255.0"], 85
        => "/qubes-netvm-netmask" = "255.255.255.0";
    captures_2_row_15_qubes_netvm_gateway:
        [&[0x0b], b"/qubes-netvm-gateway", &[0; 44], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.137.0.6"], 82
        => "/qubes-netvm-gateway" = "10.137.0.6";
    captures_2_row_16_qubes_netmask:
        [&[0x0b], b"/qubes-netmask", &[0; 50], PADDING, &[0x0f, 0x00, 0x00, 0x00], b"255.255.255.255"], 87
        => "/qubes-netmask" = "255.255.255.255";
    captures_2_row_17_qubes_mac:
        [&[0x0b], b"/qubes-mac", &[0; 54], PADDING, &[0x11, 0x00, 0x00, 0x00], b"00:16:3e:5e:6c:00"], 89
        => "/qubes-mac" = "00:16:3e:5e:6c:00";
    captures_2_row_18_qubes_ip:
        [&[0x0b], b"/qubes-ip", &[0; 55], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.137.0.6"], 82
        => "/qubes-ip" = "10.137.0.6";
    captures_2_row_19_qubes_gateway:
        [&[0x0b], b"/qubes-gateway", &[0; 50], PADDING, &[0x0a, 0x00, 0x00, 0x00], b"10.137.0.5"], 82
        => "/qubes-gateway" = "10.137.0.5";
    captures_2_row_20_qubes_firewall_10_137_0_11_policy:
        [&[0x0b], b"/qubes-firewall/10.137.0.11/policy", &[0; 30], PADDING, &[0x04, 0x00, 0x00, 0x00], b"drop"], 76
        => "/qubes-firewall/10.137.0.11/policy" = "drop";
    captures_2_row_21_qubes_firewall_10_137_0_11_0002:
        [&[0x0b], b"/qubes-firewall/10.137.0.11/0002", &[0; 32], PADDING, &[0x1f, 0x00, 0x00, 0x00], b"action=accept specialtarget=dns"], 103
        => "/qubes-firewall/10.137.0.11/0002" = "action=accept specialtarget=dns";
    captures_2_row_22_qubes_firewall_10_137_0_11_0000:
        [&[0x0b], b"/qubes-firewall/10.137.0.11/0000", &[0; 32], PADDING, &[0x3d, 0x00, 0x00, 0x00], b"action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443"], 133
        => "/qubes-firewall/10.137.0.11/0000" = "action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443";
    captures_2_row_23_qubes_firewall_10_137_0_11:
        [&[0x0b], b"/qubes-firewall/10.137.0.11", &[0; 37], PADDING, &[0, 0, 0, 0], b""], 72
        => "/qubes-firewall/10.137.0.11" = "";
    captures_2_row_24_qubes_debug_mode:
        [&[0x0b], b"/qubes-debug-mode", &[0; 47], PADDING, &[0x01, 0x00, 0x00, 0x00], b"0"], 73
        => "/qubes-debug-mode" = "0";
    captures_2_row_25_qubes_base_template:
        [&[0x0b], b"/qubes-base-template", &[0; 44], PADDING, &[0, 0, 0, 0], b""], 72
        => "/qubes-base-template" = "";
    captures_2_row_26_name:
        [&[0x0b], b"/name", &[0; 59], PADDING, &[0x0c, 0x00, 0x00, 0x00], b"sys-firewall"], 84
        => "/name" = "sys-firewall";
    captures_2_row_27_default_user:
        [&[0x0b], b"/default-user", &[0; 51], PADDING, &[0x04, 0x00, 0x00, 0x00], b"user"], 76
        => "/default-user" = "user";
    captures_2_row_28_connected_ips6:
        [&[0x0b], b"/connected-ips6", &[0; 49], PADDING, &[0, 0, 0, 0], b""], 72
        => "/connected-ips6" = "";
    captures_2_row_29_connected_ips:
        [&[0x0b], b"/connected-ips", &[0; 50], PADDING, &[0x17, 0x00, 0x00, 0x00], b"10.137.0.11 10.137.0.12"], 95
        => "/connected-ips" = "10.137.0.11 10.137.0.12";
}

/// Row 30: only the first byte of the path is cleared.
fn end_mark() -> Vec<u8> {
    cat(&[&[0x0b, 0x00], b"connected-ips", &[0; 50], PADDING, &[0; 4]])
}

#[test]
fn captures_2_row_30_end_mark_keeps_the_rest_of_the_last_path() {
    assert_eq!(end_mark().len(), 72);
    let mut client = requesting();
    assert_eq!(feed(&mut client, &end_mark()), [Event::Dumped]);
    assert!(client.store().is_empty());
}

#[test]
fn captures_2_rows_02_to_30_whole_dump() {
    let bytes = cat(&[&dump(), &end_mark()]);
    assert_eq!(bytes.len(), 2406);
    let mut client = requesting();
    let events = feed(&mut client, &bytes);
    let tree = crate::Tree::new("10.137.0.11").unwrap();
    assert_eq!(events, [Event::Dumped, Event::Committed { tree, complete: Ok(()) }]);
    assert_eq!(client.store().len(), 28);
    assert!(client.is_synchronised());
}
