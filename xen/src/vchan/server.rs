//! The server's way to a link: pages, announcement in xenstore, and its removal once the client has come.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::layout::{Layout, announce, pages};
use super::link::{Link, LinkState};
use super::memory::Memory;
use crate::abi::DomId;
use crate::event::{Channel, EventError};
use crate::grant::{self, Access, GrantError, Granted};
use crate::mem::Page;
use crate::xenstore::{
    Permission, PermissionMode, Request, StoreError, TransactionEnd, TxId, children,
};

/// Conflicts of the announcing transaction after which we give up.
const MAX_CONFLICTS: u32 = 16;

/// Minimum sizes of the two rings in bytes; what is allocated follows upstream's rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Client to server: what we read.
    pub read: usize,
    /// Server to client: what we write.
    pub write: usize,
}

impl Sizes {
    /// The qrexec control channel: 4096 bytes each way, as upstream's agent. dom0's daemon ends when a message of it
    /// does not fit.
    pub const QREXEC_CONTROL: Self = Self { read: 4096, write: 4096 };
}

/// Why there is no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// Rings larger than 2^18 bytes.
    #[error("rings too large")]
    TooLarge,
    /// No page is free.
    #[error("out of pages")]
    OutOfPages,
    /// The grant table.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// No event channel.
    #[error(transparent)]
    Event(#[from] EventError),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerOutcome {
    /// A client can find us now.
    Announced,
    /// The store does not take the announcement. The server is of no use; drop it.
    Refused(StoreError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begin,
    WriteRing(TxId),
    WritePort(TxId),
    PermitRing(TxId),
    PermitPort(TxId),
    Commit(TxId),
    Abort(TxId),
    Announced,
    RemovePort,
    ListDomain,
    RemoveDomain,
    Done,
}

/// State machine of one server end with its link. At most one xenstore request of it is outstanding.
#[derive(Debug)]
pub struct Server {
    link: Link,
    domain_path: String,
    port_path: String,
    ring_node: String,
    channel_node: String,
    ring_value: String,
    channel_value: String,
    permissions: [Permission; 2],
    state: State,
    is_requested: bool,
    is_withdrawn: bool,
    conflicts: u32,
}

impl Server {
    /// Allocates and grants everything for domain `client` to connect to our `vchan_port`. `own` is our domain
    /// number.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn new(
        client: DomId,
        own: DomId,
        vchan_port: u32,
        sizes: Sizes,
    ) -> Result<Self, ServerError> {
        let layout = Layout::for_sizes(sizes.read, sizes.write).ok_or(ServerError::TooLarge)?;
        let channel = Channel::alloc_unbound(client)?;
        let ring = grant_page(client)?;
        let left = grant_pages(client, pages(layout.left))?;
        let right = grant_pages(client, pages(layout.right))?;
        announce(ring.shared(), layout, left.iter().chain(&right).map(Granted::gref));

        let domain_path = format!("data/vchan/{}", client.0);
        let port_path = format!("{domain_path}/{vchan_port}");
        Ok(Self {
            ring_node: format!("{port_path}/ring-ref"),
            channel_node: format!("{port_path}/event-channel"),
            ring_value: format!("{}", ring.gref().0),
            channel_value: format!("{}", channel.port().0),
            domain_path,
            port_path,
            permissions: [
                Permission { dom: own, mode: PermissionMode::None },
                Permission { dom: client, mode: PermissionMode::Read },
            ],
            link: Link::server(client, channel, Memory::Server { ring, left, right }, layout),
            state: State::Begin,
            is_requested: false,
            is_withdrawn: false,
            conflicts: 0,
        })
    }

    /// The link. Bytes may be written before a client has come.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The link, for reading and writing.
    pub fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    /// The request to be sent now, if any, and the transaction to send it in. The next one comes after
    /// [`Self::on_reply`]. To be called after every event of the link as well: once the client has come, the
    /// announcement is removed, so that nobody finds grants that are used up.
    pub fn next_request(&mut self) -> Option<(TxId, Request<'_>)> {
        if self.is_requested {
            return None;
        }
        if self.state == State::Announced
            && (self.is_withdrawn || self.link.state() != LinkState::Waiting)
        {
            self.state = State::RemovePort;
        }
        let permissions = &self.permissions;
        let request = match self.state {
            State::Begin if self.is_withdrawn => return None,
            State::Begin => (TxId::NONE, Request::TransactionStart),
            State::WriteRing(tx) => {
                let value = self.ring_value.as_bytes();
                (tx, Request::Write { path: &self.ring_node, value })
            }
            State::WritePort(tx) => {
                let value = self.channel_value.as_bytes();
                (tx, Request::Write { path: &self.channel_node, value })
            }
            State::PermitRing(tx) => (tx, Request::SetPerms { path: &self.ring_node, permissions }),
            State::PermitPort(tx) => {
                (tx, Request::SetPerms { path: &self.channel_node, permissions })
            }
            State::Commit(tx) => (tx, Request::TransactionEnd(TransactionEnd::Commit)),
            State::Abort(tx) => (tx, Request::TransactionEnd(TransactionEnd::Abort)),
            State::RemovePort => (TxId::NONE, Request::Rm { path: &self.port_path }),
            State::ListDomain => (TxId::NONE, Request::Directory { path: &self.domain_path }),
            State::RemoveDomain => (TxId::NONE, Request::Rm { path: &self.domain_path }),
            State::Announced | State::Done => return None,
        };
        self.is_requested = true;
        Some(request)
    }

    /// The answer to the last request.
    pub fn on_reply(&mut self, reply: Result<&[u8], StoreError>) -> Option<ServerOutcome> {
        self.is_requested = false;
        match (self.state, reply) {
            (State::Commit(_), Err(StoreError::Again)) if self.conflicts < MAX_CONFLICTS => {
                self.conflicts += 1;
                self.state = State::Begin;
            }
            (State::Commit(_), Ok(_)) => {
                self.state = State::Announced;
                return Some(ServerOutcome::Announced);
            }
            (State::Begin, Ok(reply)) => match TxId::parse(reply) {
                Some(tx) => self.state = State::WriteRing(tx),
                None => {
                    self.state = State::Done;
                    return Some(ServerOutcome::Refused(StoreError::Other));
                }
            },
            (State::WriteRing(tx), Ok(_)) => self.state = State::WritePort(tx),
            (State::WritePort(tx), Ok(_)) => self.state = State::PermitRing(tx),
            (State::PermitRing(tx), Ok(_)) => self.state = State::PermitPort(tx),
            (State::PermitPort(tx), Ok(_)) => self.state = State::Commit(tx),
            // The removal is tidiness: it goes on, or ends, whatever the store says.
            (State::RemovePort, _) => self.state = State::ListDomain,
            (State::ListDomain, Ok(reply)) if children(reply).next().is_none() => {
                self.state = State::RemoveDomain;
            }
            (State::ListDomain | State::RemoveDomain | State::Abort(_), _) => {
                self.state = State::Done;
            }
            (State::Announced | State::Done, _) => {}
            (State::Begin | State::Commit(_), Err(error)) => {
                self.state = State::Done;
                return Some(ServerOutcome::Refused(error));
            }
            (
                State::WriteRing(tx)
                | State::WritePort(tx)
                | State::PermitRing(tx)
                | State::PermitPort(tx),
                Err(error),
            ) => {
                self.state = State::Abort(tx);
                return Some(ServerOutcome::Refused(error));
            }
        }
        None
    }

    /// Asks for the removal of the announcement although no client has come. Drop the server after
    /// [`Self::is_removed`], or at once if its successor on the same port replaces the announcement.
    pub fn withdraw(&mut self) {
        self.is_withdrawn = true;
    }

    /// Is nothing of ours in xenstore any more?
    pub fn is_removed(&self) -> bool {
        self.state == State::Done || (self.state == State::Begin && self.is_withdrawn)
    }
}

fn grant_page(client: DomId) -> Result<Granted, ServerError> {
    let page = Page::alloc().ok_or(ServerError::OutOfPages)?;
    grant::grant(page, client, Access::ReadWrite).map_err(|(error, _)| error.into())
}

fn grant_pages(client: DomId, count: usize) -> Result<Vec<Granted>, ServerError> {
    (0..count).map(|_| grant_page(client)).collect()
}
