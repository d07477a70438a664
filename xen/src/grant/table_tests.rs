use super::*;
use crate::fake;
use alloc::vec::Vec;

const PEER: DomId = DomId(3);
const OTHER: DomId = DomId(4);

fn page_with(text: &[u8]) -> Page {
    let mut page = Page::alloc().unwrap();
    page.prefix_mut(text.len()).copy_from_slice(text);
    page
}

#[test]
fn the_peer_and_nobody_else_reads_until_revoked() {
    let (peer, other) = (fake::peer(PEER), fake::peer(OTHER));
    let granted = grant(page_with(b"hello"), PEER, Access::ReadOnly).unwrap();
    let gref = granted.gref();
    let mut seen = [0; 5];
    peer.read(gref, 0, &mut seen).unwrap();
    assert_eq!(&seen, b"hello");
    assert!(other.read(gref, 0, &mut seen).is_err());
    granted.revoke().unwrap();
    assert!(peer.read(gref, 0, &mut seen).is_err());
}

#[test]
fn a_read_only_grant_cannot_be_written() {
    let peer = fake::peer(PEER);
    let granted = grant(page_with(b"x"), PEER, Access::ReadOnly).unwrap();
    assert!(peer.write(granted.gref(), 0, b"y").is_err());
    assert!(peer.map(granted.gref(), Access::ReadWrite).is_err());
    assert_eq!(granted.shared().read_u8(0), b'x');
}

#[test]
fn what_the_peer_writes_is_seen_and_cleared_before_reuse() {
    let peer = fake::peer(PEER);
    let granted = grant(Page::alloc().unwrap(), PEER, Access::ReadWrite).unwrap();
    peer.write(granted.gref(), 4000, b"left").unwrap();
    assert_eq!(granted.shared().read_u8(4000), b'l');
    let mut page = granted.revoke().unwrap();
    assert_eq!(&page.bytes()[4000..4004], b"left");
    page.clear_from(0);
    assert_eq!(page.bytes(), &[0; PAGE_SIZE]);
}

#[test]
fn references_start_above_the_reserved_ones_and_are_used_again() {
    let first = grant(Page::alloc().unwrap(), PEER, Access::ReadOnly).unwrap();
    let second = grant(Page::alloc().unwrap(), PEER, Access::ReadOnly).unwrap();
    assert_eq!((first.gref(), second.gref()), (GrantRef(8), GrantRef(9)));
    first.revoke().unwrap();
    assert_eq!(grant(Page::alloc().unwrap(), PEER, Access::ReadOnly).unwrap().gref(), GrantRef(8));
    assert_eq!(grants_in_use(), 1);
}

#[test]
fn a_page_in_use_is_not_given_back() {
    let peer = fake::peer(PEER);
    let granted = grant(Page::alloc().unwrap(), PEER, Access::ReadWrite).unwrap();
    let held = peer.map(granted.gref(), Access::ReadWrite).unwrap();
    let granted = granted.revoke().unwrap_err();
    drop(held);
    assert!(granted.revoke().is_ok());
    assert_eq!(grants_in_use(), 0);
}

#[test]
fn a_dropped_grant_in_use_waits_in_quarantine() {
    let peer = fake::peer(PEER);
    let before = mem::free_pages();
    let granted = grant(Page::alloc().unwrap(), PEER, Access::ReadOnly).unwrap();
    let gref = granted.gref();
    let first = peer.map(gref, Access::ReadOnly).unwrap();
    let second = peer.map(gref, Access::ReadOnly).unwrap();
    drop(granted);
    assert_eq!((quarantined(), grants_in_use(), mem::free_pages()), (1, 1, before - 1));
    let next = grant(Page::alloc().unwrap(), PEER, Access::ReadOnly).unwrap();
    assert_ne!(next.gref(), gref, "a reference in use is not used again");
    drop(first);
    retry_quarantine();
    assert_eq!(quarantined(), 1, "the second mapping still holds it");
    drop(second);
    retry_quarantine();
    assert_eq!(quarantined(), 0);
    drop(next);
    assert_eq!((grants_in_use(), mem::free_pages()), (0, before));
    fake::assert_no_leaks();
}

#[test]
fn the_table_grows_to_the_limit_and_then_gives_the_page_back() {
    fake::limit_grant_frames(2);
    let mut grants = Vec::new();
    let refused = loop {
        match grant(Page::alloc().unwrap(), PEER, Access::ReadOnly) {
            Ok(granted) => grants.push(granted),
            Err((error, _page)) => break error,
        }
    };
    assert_eq!((refused, grants.len()), (GrantError::TableFull, 2 * 512 - 8));
    let mut numbers: Vec<u32> = grants.iter().map(|granted| granted.gref().0).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (8..1024).collect::<Vec<u32>>());
    grants.pop();
    assert!(grant(Page::alloc().unwrap(), PEER, Access::ReadOnly).is_ok());
}

#[test]
#[should_panic(expected = "grants not revoked")]
fn the_fake_reports_a_leaked_grant() {
    core::mem::forget(grant(Page::alloc().unwrap(), PEER, Access::ReadOnly).unwrap());
    fake::assert_no_leaks();
}
