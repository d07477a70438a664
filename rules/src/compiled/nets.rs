//! The prefixes of a set as a forest: each points to the smallest other one around it. Of two prefixes one lies within
//! the other or they are apart, so that all prefixes around an address are one path upwards.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

use super::segments::{Bucket, Segments};
use crate::rule::Destination;
use crate::set::RuleSet;

/// A prefix.
#[derive(Debug, Clone, Copy)]
struct Node {
    bucket: Bucket,
    /// A rule that has it, and so its text.
    rule: u16,
    /// The node around it, or [`NO_NODE`].
    parent: u16,
}

/// Nodes are no more than rules, which four digits number.
const NO_NODE: u16 = u16::MAX;

/// The prefixes, ascending by address, the larger of two with one address first.
#[derive(Debug, Clone, Default)]
pub(super) struct Nets(Vec<Node>);

impl Nets {
    /// What a rule costs at most.
    pub(super) const MAX_RULE_BYTES: usize = size_of::<Node>();

    pub(super) fn with_capacity(nets: usize) -> Result<Self, TryReserveError> {
        let mut nodes = Vec::new();
        nodes.try_reserve_exact(nets)?;
        Ok(Self(nodes))
    }

    /// Adds a prefix, which is that of `rule`; they come in the order of [`Nets`].
    pub(super) fn push(&mut self, set: &RuleSet, rule: u16, bucket: Bucket) {
        let Some(new) = net_of(set, rule) else { return };
        // The one before, or one around it: those that are passed over here have ended.
        let mut parent = self.0.len().checked_sub(1).map_or(NO_NODE, |last| last as u16);
        while let Some(node) = self.0.get(usize::from(parent)) {
            if net_of(set, node.rule).is_some_and(|net| net.contains(&new.addr())) {
                break;
            }
            parent = node.parent;
        }
        self.0.push(Node { bucket, rule, parent });
    }

    /// The first rule for a prefix around `destination` that matches a place on the axis.
    pub(super) fn first_rule(
        &self,
        set: &RuleSet,
        segments: &Segments,
        (destination, place): (IpAddr, u32),
        mut best: u16,
    ) -> u16 {
        let mut at = self.innermost(set, destination);
        while let Some(node) = self.0.get(usize::from(at)) {
            best = segments.first_rule(node.bucket, place, best);
            at = node.parent;
        }
        best
    }

    /// The smallest prefix around an address.
    fn innermost(&self, set: &RuleSet, address: IpAddr) -> u16 {
        let bits = bits(address);
        let behind = self.0.partition_point(|node| {
            net_of(set, node.rule).is_some_and(|net| self::bits(net.addr()) <= bits)
        });
        let mut at = behind.checked_sub(1).map_or(NO_NODE, |last| last as u16);
        while let Some(node) = self.0.get(usize::from(at)) {
            if net_of(set, node.rule).is_some_and(|net| net.contains(&address)) {
                break;
            }
            at = node.parent;
        }
        at
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity().saturating_mul(size_of::<Node>())
    }
}

fn net_of(set: &RuleSet, rule: u16) -> Option<&IpNet> {
    match set.get(rule.into())?.1.destination() {
        Destination::Net(net) => Some(net),
        Destination::Any | Destination::Host(_) => None,
    }
}

/// An address as a number; those of a set are all of one family.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
