//! Answers that do not fit into a datagram: over TCP, against a TCP stack as the server.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::*;

/// A server that listens on port 53 of [`FIRST`].
struct Server {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    handles: Vec<SocketHandle>,
    /// The connection that the latest question came by.
    handle: SocketHandle,
}

#[derive(Default)]
struct Wire {
    incoming: Vec<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(In, Out<'_>)> {
        (!self.incoming.is_empty()).then(|| (In(self.incoming.remove(0)), Out(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Out<'_>> {
        Some(Out(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

impl Server {
    fn new() -> Self {
        let mut wire = Wire::default();
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        interface.update_ip_addrs(|all| all.push(IpCidr::new(IpAddress::from(FIRST), 0)).unwrap());
        let mut sockets = SocketSet::new(vec![]);
        let handles: Vec<SocketHandle> = (0..2)
            .map(|_| {
                let buffer = || SocketBuffer::new(vec![0; 65_536]);
                let mut socket = Socket::new(buffer(), buffer());
                socket.listen(53).unwrap();
                sockets.add(socket)
            })
            .collect();
        let handle = handles[0];
        Self { interface, wire, sockets, handles, handle }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Carries packets both ways until nobody has more to say; `lose` says which of ours get lost.
    fn exchange(&mut self, script: &mut Script, mut lose: impl FnMut() -> bool) {
        for _ in 0..200 {
            let mut is_quiet = true;
            while let Some(packet) = script.packet() {
                is_quiet = false;
                if packet[9] == 6 && !lose() {
                    self.wire.incoming.push(packet);
                }
            }
            let time = StackInstant::from_micros((script.now.as_nanos() / 1000) as i64);
            self.interface.poll(time, &mut self.wire, &mut self.sockets);
            for packet in std::mem::take(&mut self.wire.outgoing) {
                is_quiet = false;
                let port = u16::from_be_bytes([packet[22], packet[23]]);
                script.dns.receive_segment(
                    script.now,
                    FIRST.into(),
                    port,
                    &packet,
                    &mut script.nat,
                );
            }
            if is_quiet {
                return;
            }
        }
        panic!("no end of packets");
    }

    /// The question that arrived, if it did.
    fn question(&mut self) -> Option<Asked> {
        let mut bytes = [0; 600];
        let has_data = |handle: &&SocketHandle| self.sockets.get::<Socket<'_>>(**handle).can_recv();
        self.handle = *self.handles.iter().find(has_data)?;
        let len = self.socket().recv_slice(&mut bytes).ok().filter(|len| *len > 0)?;
        assert_eq!(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), len - 2);
        let port = self.socket().remote_endpoint().unwrap().port;
        let id = u16::from_be_bytes([bytes[2], bytes[3]]);
        Some(Asked { server: FIRST.into(), port, id, question: bytes[14..len].to_vec() })
    }

    fn say(&mut self, message: &[u8]) {
        let bytes = [&(message.len() as u16).to_be_bytes()[..], message].concat();
        assert_eq!(self.socket().send_slice(&bytes), Ok(bytes.len()));
    }
}

/// A name whose first answer by UDP was cut.
fn cut() -> Script {
    let mut script = Script::new(&[NAME]);
    script.servers(&[FIRST]);
    let asked = script.ask();
    let reply = Reply::to(&asked).a(300, Y).with(|r| r.flags |= 0x0200);
    assert_eq!(script.reply(&asked, &reply), Taken::Used);
    assert_eq!(script.knows(Y), NameMatch::Unresolved);
    script
}

fn long_reply(asked: &Asked, count: u16) -> Reply {
    (0..count).fold(Reply::to(asked), |reply, n| {
        let [high, low] = n.to_be_bytes();
        reply.a(300, Ipv4Addr::new(203, 0, high, low))
    })
}

#[test]
fn a_cut_answer_is_fetched_over_tcp() {
    let (mut script, mut server) = (cut(), Server::new());
    server.exchange(&mut script, || false);
    let asked = server.question().unwrap();
    assert!(asked.port >= 1024);
    assert_eq!(asked.name().to_ascii_lowercase(), wire(NAME));
    // 6.4 kB: several segments, more than the window.
    server.say(&long_reply(&asked, 400).bytes());
    server.exchange(&mut script, || false);
    assert_eq!(script.dns.store.sizes(), (1, 4));
    assert_eq!(script.knows(Y), NameMatch::HasNot);
    assert_eq!(script.nat.leased(), 0);
    assert!(script.dns.next_deadline().unwrap() > script.now);
}

#[test]
fn lost_segments_are_sent_again() {
    let (mut script, mut server) = (cut(), Server::new());
    let mut count = 0;
    let mut lose = || {
        count += 1;
        count % 2 == 1
    };
    let mut is_answered = false;
    for _ in 0..12 {
        server.exchange(&mut script, &mut lose);
        if let Some(asked) = server.question() {
            server.say(&Reply::to(&asked).a(300, X).bytes());
            is_answered = true;
            server.exchange(&mut script, &mut lose);
        }
        if script.knows(X) == NameMatch::Has {
            break;
        }
        script.wait(1);
    }
    assert!(is_answered && count > 2);
    assert_eq!(script.knows(X), NameMatch::Has);
}

#[test]
fn a_connection_that_nobody_takes_is_given_up() {
    let mut script = cut();
    for _ in 0..20 {
        while script.packet().is_some_and(|packet| packet[9] == 6) {}
        if script.dns.resolver_is_past_first_attempt() {
            break;
        }
        script.wait(1);
    }
    assert!(script.dns.resolver_is_past_first_attempt());
    assert!(script.nat.leased() <= 2, "a port of each family");
}

#[test]
fn a_reset_or_an_end_without_an_answer_is_a_failure() {
    for end in [Socket::abort, Socket::close] as [fn(&mut Socket<'static>); 2] {
        let (mut script, mut server) = (cut(), Server::new());
        server.exchange(&mut script, || false);
        assert!(server.question().is_some());
        end(server.socket());
        server.exchange(&mut script, || false);
        assert!(script.dns.resolver_is_past_first_attempt());
        assert_eq!(script.knows(X), NameMatch::Unresolved);
    }
}

#[test]
fn an_answer_that_is_too_long_is_refused_by_its_length() {
    let (mut script, mut server) = (cut(), Server::new());
    server.exchange(&mut script, || false);
    let asked = server.question().unwrap();
    server.say(&long_reply(&asked, 600).bytes());
    server.exchange(&mut script, || false);
    assert!(script.dns.resolver_is_past_first_attempt());
    assert_eq!(script.knows(Ipv4Addr::new(203, 0, 0, 3)), NameMatch::Unresolved);
}

#[test]
fn another_question_or_number_on_the_connection_is_no_answer() {
    let changes: [fn(&mut Reply); 3] =
        [|r| r.id ^= 1, |r| r.question[1] = b'z', |r| r.flags |= 0x0200];
    for change in changes {
        let (mut script, mut server) = (cut(), Server::new());
        server.exchange(&mut script, || false);
        let asked = server.question().unwrap();
        server.say(&Reply::to(&asked).a(300, X).with(change).bytes());
        server.exchange(&mut script, || false);
        assert!(script.dns.resolver_is_past_first_attempt());
        assert_eq!(script.knows(X), NameMatch::Unresolved);
    }
}

#[test]
fn segments_of_others_reach_nobody() {
    let (mut script, mut server) = (cut(), Server::new());
    server.exchange(&mut script, || false);
    let port = server.question().unwrap().port;
    let packet = [0x45; 40];
    let mut receive = |from: Ipv4Addr, port| {
        script.dns.receive_segment(script.now, from.into(), port, &packet, &mut script.nat)
    };
    assert_eq!(receive(SECOND, port), Taken::NotOurs);
    assert_eq!(receive(FIRST, port ^ 1), Taken::NotOurs);
    assert_eq!(receive(FIRST, port), Taken::Used, "junk is the stack's to refuse");
    assert!(!script.dns.resolver_is_past_first_attempt());
}

#[test]
fn two_cut_answers_share_one_connection_in_turn() {
    let mut script = Script::new(&[NAME, "b.example.org"]);
    script.servers(&[FIRST]);
    let mut server = Server::new();
    for asked in script.all_asked() {
        script.reply(&asked, &Reply::to(&asked).with(|r| r.flags |= 0x0200));
    }
    for _ in 0..2 {
        server.exchange(&mut script, || false);
        let asked = server.question().unwrap();
        server.say(&Reply::to(&asked).a(300, X).bytes());
        server.exchange(&mut script, || false);
    }
    assert_eq!([script.knows(X), script.look(CLIENT, "b.example.org", X)], [NameMatch::Has; 2]);
    assert_eq!(script.nat.leased(), 0);
}
