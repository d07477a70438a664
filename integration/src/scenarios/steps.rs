//! Steps that several scenarios and the story of `cargo xtask run` share.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::fail;
use crate::lab::domain::{Background, Domain};
use crate::lab::guests::Served;
use crate::lab::world::World;

/// Client A of the story.
pub const ALICE: usize = 0;
/// Client B.
pub const BOB: usize = 1;
/// The client that starts when both are gone.
pub const CAROL: usize = 2;

/// For a download of 20 MB under emulation on a busy host.
pub const DOWNLOAD: Duration = Duration::from_secs(180);

/// The rule of a client that may only use HTTPS of the lab's server.
pub fn https_only(world: &World) -> String {
    format!("action=accept proto=tcp dst4={}/32 dstports=443-443", world.plan.internet)
}

/// Firewall with uplink and both clients: A may use tcp/443 only, B may do everything.
///
/// # Errors
/// When one of them does not start.
pub fn need_both(world: &mut World) -> Result<()> {
    need_one(world)?;
    world.need_client(BOB)
}

/// Firewall with uplink and client A, which may use tcp/443 only.
///
/// # Errors
/// When one of them does not start.
pub fn need_one(world: &mut World) -> Result<()> {
    let rule = https_only(world);
    world.need_firewall(Some(0))?;
    world.need_rules(ALICE, &[&rule])?;
    world.need_client(ALICE)
}

/// Gets the small page of NetVM number `netvm` from tcp/443.
///
/// # Errors
/// When it does not come, or comes from another place.
pub fn page(world: &World, client: &Domain, netvm: usize) -> Result<()> {
    let server = &world.plan.internet;
    let out =
        client.exec(&world.lab, &format!("timeout 60 wget -q -O - http://{server}:443/ 2>&1"))?;
    let expected = world.plan.netvms.get(netvm).map(|netvm| format!("page of {}", netvm.page));
    if !out.success() || Some(out.text.trim()) != expected.as_deref() {
        fail!(
            "{}: page from tcp/443: {} {:?} (wanted {expected:?})",
            client.name,
            out.status,
            out.text
        );
    }
    Ok(())
}

/// Tries tcp/80, which must be refused by ICMP at once; milliseconds that the client waited.
///
/// # Errors
/// When it is not refused, or only times out.
pub fn refused(world: &World, client: &Domain, address: &str) -> Result<u64> {
    refused_port(world, client, address, 80)
}

/// As [`refused`], for another port.
///
/// # Errors
/// As [`refused`].
pub fn refused_port(world: &World, client: &Domain, address: &str, port: u16) -> Result<u64> {
    // A connection attempt that nobody answers is repeated after 1 s: an answer below that was immediate.
    let line = format!(
        "a=$(cut -d' ' -f1 /proc/uptime); timeout 10 wget -q -O /dev/null http://{address}:{port}/ 2>&1; echo \"status $?\"; \
         b=$(cut -d' ' -f1 /proc/uptime); echo \"from $a to $b\""
    );
    let text = world.sh(client, &line)?;
    let ms = elapsed_ms(&text).ok_or_else(|| Error::Failed(format!("no times in {text:?}")))?;
    if text.contains("status 0") {
        fail!("{}: {address}:{port} was not refused", client.name);
    }
    let said = ["No route to host", "refused", "unreachable"];
    if !said.iter().any(|words| text.contains(words)) {
        fail!("{}: {address}:{port} was not refused by ICMP: {text}", client.name);
    }
    // Linux only notes an ICMP error that comes while `connect` still holds the socket, and then waits for the
    // answer to its next SYN, a second later. What the firewall did is on the wire.
    if ms >= 900 { refused_on_the_wire(world, client, address, port) } else { Ok(ms) }
}

/// What the client's side of the wire shows of a refusal: milliseconds from its SYN to an ICMP "communication
/// administratively prohibited" (type 3, code 13), by the bytes of the packet and not by anybody's words.
///
/// # Errors
/// When no such packet follows at once.
pub fn refused_on_the_wire(
    world: &World,
    client: &Domain,
    address: &str,
    port: u16,
) -> Result<u64> {
    // Only type 3 with code 13 passes the second half.
    let filter =
        format!("(tcp and dst host {address} and dst port {port}) or (icmp[0:2] == 0x030d)");
    let dump = capture(world, client, "eth0", &filter)?;
    client
        .exec(&world.lab, &format!("timeout 10 wget -q -O /dev/null http://{address}:{port}/"))?;
    let packets = dump.finish(world, client)?;
    match syn_to_icmp_ms(&packets) {
        Some(ms) if ms < 900 => Ok(ms),
        _ => fail!(
            "{}: {address}:{port} was not refused at once by ICMP 3/13:\n{packets}",
            client.name
        ),
    }
}

/// From the first SYN to the first ICMP error in lines of `tcpdump -tt`.
pub fn syn_to_icmp_ms(packets: &str) -> Option<u64> {
    let at = |needle: &str| -> Option<f64> {
        packets.lines().find(|line| line.contains(needle))?.split_whitespace().next()?.parse().ok()
    };
    let ms = (at("ICMP")? - at("Flags [S]")?) * 1000.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds at most, checked"
    )]
    (0.0..60_000.0).contains(&ms).then_some(ms as u64)
}

/// `from A to B` in seconds with hundredths -> milliseconds.
fn elapsed_ms(text: &str) -> Option<u64> {
    let (_, times) = text.rsplit_once("from ")?;
    let (from, to) = times.trim().split_once(" to ")?;
    Some(hundredths(to)?.checked_sub(hundredths(from)?)? * 10)
}

fn hundredths(text: &str) -> Option<u64> {
    text.trim().replace('.', "").parse().ok()
}

/// Downloads a file of the server over tcp/443 and compares the hash; bytes per second.
///
/// # Errors
/// When it fails or differs.
pub fn download(world: &World, client: &Domain, file: Served) -> Result<f64> {
    let line = download_line(&world.plan.internet, file);
    let what = format!("download of {} MB", file.megabytes());
    let text = client.exec_for(&world.lab, &line, DOWNLOAD)?.ok(&what)?;
    downloaded(client, file, &text)
}

/// The shell line of a download from `server` (an IPv6 address in brackets), for [`downloaded`].
pub fn download_line(server: &str, file: Served) -> String {
    format!(
        "a=$(cut -d' ' -f1 /proc/uptime); timeout 170 wget -q -O - http://{server}:443/{} | sha256sum; \
         b=$(cut -d' ' -f1 /proc/uptime); echo \"from $a to $b\"",
        file.name
    )
}

/// Judges what [`download_line`] printed; bytes per second.
///
/// # Errors
/// When something else than the file came.
pub fn downloaded(client: &Domain, file: Served, text: &str) -> Result<f64> {
    let (size, hash) = file.content();
    if !text.starts_with(&hash) {
        fail!("{}: {size} bytes with SHA-256 {hash} expected, got {text}", client.name);
    }
    let ms = elapsed_ms(text).unwrap_or(0).max(10);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people, of numbers far below 2^52")]
    Ok(size as f64 * 1000.0 / ms as f64)
}

/// Sends a file that the client has fetched before to the server, which compares the hash; bytes per second.
///
/// # Errors
/// When it fails or differs.
pub fn upload(world: &World, client: &Domain, file: Served) -> Result<f64> {
    upload_to(world, client, file, &world.plan.internet)
}

/// The same to another address of the server, an IPv6 one in brackets.
///
/// # Errors
/// As [`upload`].
pub fn upload_to(world: &World, client: &Domain, file: Served, server: &str) -> Result<f64> {
    let family = if server.starts_with('[') { "6" } else { "4" };
    client
        .exec_for(
            &world.lab,
            &format!("wget -q -O /tmp/up http://{server}:443/{}", file.name),
            DOWNLOAD,
        )?
        .ok("the file to send")?;
    let line =
        format!("socat -u TCP{family}-LISTEN:{UPLOADS},bind={server},reuseaddr STDOUT | sha256sum");
    let takes = world.netvm(0)?.spawn(&world.lab, &line)?;
    let line = format!(
        "a=$(cut -d' ' -f1 /proc/uptime); timeout 170 socat -u FILE:/tmp/up TCP{family}:{server}:{UPLOADS},retry=20; \
         b=$(cut -d' ' -f1 /proc/uptime); rm /tmp/up; echo \"from $a to $b\""
    );
    let times = client.exec_for(&world.lab, &line, DOWNLOAD)?.ok("upload")?;
    let text = takes.finish(&world.lab, world.netvm(0)?, DOWNLOAD)?.text;
    downloaded(client, file, &format!("{text}{times}"))
}

/// TCP port of the server's for [`upload`].
const UPLOADS: u16 = 5300;

/// Resolves the server's name through both resolvers that clients are told.
///
/// # Errors
/// When one does not answer, or with another address.
pub fn resolves(world: &World, client: &Domain) -> Result<()> {
    for resolver in &world.plan.client_dns {
        // A question over UDP may be lost, and a busy host be slower than nslookup waits: three attempts.
        let line = format!("nslookup -type=a {} {resolver} 2>&1", world.plan.server_name);
        let out = client.exec(&world.lab, &format!("{line} || {line} || {line}"))?;
        if !out.text.contains(&world.plan.internet) {
            fail!(
                "{}: {} at resolver {resolver}: {}",
                client.name,
                world.plan.server_name,
                out.text.trim()
            );
        }
    }
    Ok(())
}

/// Asks the first resolver that clients are told for the server's name over TCP.
///
/// # Errors
/// When the answer does not contain the server's address.
pub fn resolves_over_tcp(world: &World, client: &Domain) -> Result<()> {
    let query: String =
        tcp_query(&world.plan.server_name).iter().map(|byte| format!("\\{byte:03o}")).collect();
    let resolver = world.plan.client_dns.first().map_or("", |dns| dns);
    let line = format!(
        "(printf '{query}'; sleep 2) | timeout 10 nc {resolver} 53 | hexdump -v -e '/1 \"%02x\"'"
    );
    let answer = client.exec(&world.lab, &line)?.text;
    let octets = world.plan.internet.split('.').filter_map(|part| part.parse::<u8>().ok());
    let address: String = octets.map(|octet| format!("{octet:02x}")).collect();
    if !answer.contains(&address) {
        fail!("{}: DNS over TCP at {resolver}: no {address} in {answer:?}", client.name);
    }
    Ok(())
}

/// A query for the A record of `name`, with the length that goes before it on TCP (RFC 1035 4.1, 4.2.2).
fn tcp_query(name: &str) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    let length = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [&length, message.as_slice()].concat()
}

/// Echo requests to `address`: how many of `count` were answered.
///
/// # Errors
/// When the client does not run them.
pub fn ping(world: &World, client: &Domain, count: u32, address: &str) -> Result<u32> {
    let out = client.exec(&world.lab, &format!("ping -q -c {count} -i 0.3 -W 2 {address}"))?;
    replies(&out.text).ok_or_else(|| Error::Failed(format!("{}: ping: {}", client.name, out.text)))
}

/// Two echo requests of 1200 bytes: how many were answered.
///
/// # Errors
/// When the client does not run them.
pub fn ping_large(world: &World, client: &Domain, address: &str) -> Result<u32> {
    let out = client.exec(&world.lab, &format!("ping -q -c 2 -i 0.3 -W 2 -s 1200 {address}"))?;
    replies(&out.text).ok_or_else(|| Error::Failed(format!("{}: ping: {}", client.name, out.text)))
}

/// The number of answers in ping's summary.
pub fn replies(text: &str) -> Option<u32> {
    let (before, _) = text.split_once(" received")?;
    before.rsplit([' ', ',']).next()?.parse().ok()
}

/// Waits until the client gets echo replies from `address` again; seconds.
///
/// # Errors
/// When it does not in 90 s.
pub fn flows_again(world: &World, client: &Domain, address: &str) -> Result<f32> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(90) {
        if client.exec(&world.lab, &format!("ping -q -c 1 -W 1 {address}"))?.success() {
            return Ok(begun.elapsed().as_secs_f32());
        }
    }
    fail!("{}: no answer from {address} for 90 s", client.name)
}

/// A running packet capture in a Linux guest.
pub struct Capture {
    background: Background,
}

/// Starts to capture what matches tcpdump's `filter` on `interface`; returns when it listens.
///
/// # Errors
/// When it does not start.
pub fn capture(world: &World, domain: &Domain, interface: &str, filter: &str) -> Result<Capture> {
    // The number is that of tcpdump itself, so that ending one capture leaves others alone.
    let line =
        format!("echo pid $$; exec tcpdump -Z root -l -n -tt -i {interface} '{filter}' 2>&1");
    let background = domain.spawn(&world.lab, &line)?;
    let begun = std::time::Instant::now();
    while !background.so_far(&world.lab, domain)?.contains("listening on") {
        if begun.elapsed() > Duration::from_secs(90) {
            fail!("{}: tcpdump: {}", domain.name, background.so_far(&world.lab, domain)?);
        }
    }
    Ok(Capture { background })
}

impl Capture {
    /// Ends it; the packets, one line each.
    ///
    /// # Errors
    /// When it does not end.
    pub fn finish(self, world: &World, domain: &Domain) -> Result<String> {
        let so_far = self.background.so_far(&world.lab, domain)?;
        let Some(pid) = so_far.lines().find_map(|line| line.strip_prefix("pid ")) else {
            fail!("{}: a capture without a number: {so_far}", domain.name)
        };
        world.sh(domain, &format!("sleep 1; kill -INT {pid}"))?;
        let text = self.background.finish(&world.lab, domain, Duration::from_secs(30))?.text;
        let packets = text
            .lines()
            .filter(|line| line.contains(" IP ") || line.contains(" IP6 ") || line.contains("ARP"));
        Ok(packets.collect::<Vec<_>>().join("\n"))
    }
}

/// The value of `key=` in a console line.
pub fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The whole number of `key=` in a console line.
///
/// # Errors
/// When it is missing or no number.
pub fn number(line: &str, key: &str) -> Result<u64> {
    let found = field(line, key).and_then(|text| text.trim_end_matches(',').parse().ok());
    found.ok_or_else(|| Error::Failed(format!("no number {key}= in the console line {line:?}")))
}

/// The number of `key=`, possibly with decimals, in a console line.
///
/// # Errors
/// When it is missing or no number.
pub fn decimal(line: &str, key: &str) -> Result<f64> {
    let found = field(line, key).and_then(|text| text.trim_end_matches(',').parse().ok());
    found.ok_or_else(|| Error::Failed(format!("no number {key}= in the console line {line:?}")))
}

/// Waits until the firewall's console, after `mark`, tells of at least `count` packets from clients that were
/// dropped for `reason`; returns how many it tells of. Summaries come every few seconds while counters move.
///
/// # Errors
/// When it tells of fewer for half a minute.
pub fn dropped(world: &World, mark: u64, reason: &str, count: u64) -> Result<u64> {
    let begun = std::time::Instant::now();
    let needle = format!("fw: drop reason={reason} origin=client ");
    loop {
        let log = world.firewall()?.console_after(mark)?;
        let lines = log.lines().filter(|line| line.contains(&needle));
        let told = lines.filter_map(|line| number(line, "new").ok()).sum();
        if told >= count {
            return Ok(told);
        }
        if begun.elapsed() > Duration::from_secs(90) {
            fail!("the firewall tells of {told} packets dropped as {reason}, not of {count}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_of_ping() {
        assert_eq!(replies("5 packets transmitted, 4 received, 20% packet loss"), Some(4));
        assert_eq!(
            replies("3 packets transmitted, 0 received, +3 errors, 100% packet loss"),
            Some(0)
        );
        assert_eq!(replies("nothing"), None);
    }

    #[test]
    fn times_of_the_guest() {
        assert_eq!(elapsed_ms("status 1\nfrom 12.34 to 12.41\n"), Some(70));
        assert_eq!(elapsed_ms("no times"), None);
    }

    #[test]
    fn time_on_the_wire() {
        let packets = "100.010000 IP 10.0.0.2.5 > 192.0.2.1.80: Flags [S], seq 1\n\
            100.025500 IP 192.0.2.1 > 10.0.0.2: ICMP host 192.0.2.1 unreachable - admin prohibited\n\
            101.000000 IP 10.0.0.2.5 > 192.0.2.1.80: Flags [S], seq 1\n";
        assert_eq!(syn_to_icmp_ms(packets), Some(15));
        assert_eq!(syn_to_icmp_ms("100.0 IP a > b: Flags [S]\n"), None);
    }

    #[test]
    fn dns_query_over_tcp_has_its_length_first() {
        let query = tcp_query("a.bc");
        assert_eq!(query[..2], [0, 22]);
        assert_eq!(query.len(), 24);
        assert_eq!(query[14..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn fields_of_console_lines() {
        let line = "fw: rule edit ip=10.0.0.1 generation=3 committed_at_ns=5 first_judged_at_ns=9";
        assert_eq!(number(line, "first_judged_at_ns").unwrap(), 9);
        assert_eq!(field(line, "ip"), Some("10.0.0.1"));
        assert!(number(line, "ip").is_err());
    }
}
