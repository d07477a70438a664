//! Received bytes that are not processed yet: a bounded buffer out of which whole messages are taken.

use alloc::vec::Vec;

use crate::message::{HEADER_BYTES, Header, HeaderError, MAX_MESSAGE_BYTES};

/// Room for one message that is incomplete and one full 4096-byte ring behind it.
const CAPACITY_BYTES: usize = 8192;

/// What the front of the buffer holds.
#[derive(Debug)]
pub(crate) enum Front {
    /// Not all bytes of the next message are there.
    Incomplete,
    /// A whole message: header and value.
    Message(Header),
    /// No message can be made of what is there.
    Bad(HeaderError),
}

/// The buffer. Allocated once.
#[derive(Debug)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    /// Bytes at the front that are processed.
    done: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::with_capacity(CAPACITY_BYTES), done: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.done = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending().is_empty()
    }

    /// Bytes that [`Self::push`] would take.
    pub(crate) fn room(&self) -> usize {
        CAPACITY_BYTES.saturating_sub(self.pending().len())
    }

    /// Takes as many bytes as fit and says how many.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        if self.bytes.len().saturating_add(taken) > CAPACITY_BYTES {
            self.bytes.drain(..self.done);
            self.done = 0;
        }
        self.bytes.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        taken
    }

    /// Looks at the next message. A header is judged as soon as it is complete: a value of an impossible length
    /// is not waited for.
    pub(crate) fn front(&self) -> Front {
        let pending = self.pending();
        let Some(raw) = pending.first_chunk::<HEADER_BYTES>() else { return Front::Incomplete };
        match Header::decode(raw) {
            Err(error) => Front::Bad(error),
            Ok(header) if pending.len() < HEADER_BYTES.saturating_add(header.data_len()) => {
                Front::Incomplete
            }
            Ok(header) => Front::Message(header),
        }
    }

    /// The value of the message whose header [`Self::front`] returned.
    pub(crate) fn value(&self, header: &Header) -> &[u8] {
        let end = HEADER_BYTES.saturating_add(header.data_len());
        self.pending().get(HEADER_BYTES..end).unwrap_or_default()
    }

    /// Removes that message.
    pub(crate) fn consume(&mut self, header: &Header) {
        self.done = self.done.saturating_add(HEADER_BYTES).saturating_add(header.data_len());
        if self.done >= self.bytes.len() {
            self.clear();
        }
    }

    fn pending(&self) -> &[u8] {
        self.bytes.get(self.done..).unwrap_or_default()
    }
}

const _: () = assert!(CAPACITY_BYTES >= MAX_MESSAGE_BYTES + 4096);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_never_pauses_at_a_message_border_does_not_make_the_buffer_grow() {
        let mut input = Input::new();
        let capacity = input.bytes.capacity();
        let header = crate::message::encode_header(crate::Kind::Ok, None, 0);
        assert_eq!(input.push(&header[..30]), 30);
        for _ in 0..1000 {
            assert_eq!(input.push(&header[30..]), 42);
            assert_eq!(input.push(&header[..30]), 30);
            let Front::Message(header) = input.front() else { panic!("a whole message") };
            input.consume(&header);
        }
        assert_eq!((input.bytes.capacity(), input.pending().len()), (capacity, 30));
    }
}
