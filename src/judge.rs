//! What the rules of a source say about a flow.

use rules::{DecidedBy, Subject, Upper};

use crate::clients::{Host, RulesState};
use crate::conntrack::{Basis, Tuple};
use crate::dns::{Held, View};
use crate::exposure::Exposure;
use crate::planted::{Defect, is_planted};
use crate::uplink::NetworkConfig;
use crate::verdict::DropReason;
use crate::wire::{ip, protocol};

/// What permits a flow or forbids it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judgement {
    /// What in the rules of its client decided, if they were asked.
    pub(crate) by: Option<DecidedBy>,
    /// The name by which the rules accept it, if it is by one; or why not.
    pub(crate) outcome: Result<Option<Held>, DropReason>,
}

impl Judgement {
    /// The rules were not asked.
    fn without_rules(outcome: Result<(), DropReason>) -> Self {
        Self { by: None, outcome: outcome.map(|()| None) }
    }
}

/// Judges a flow by what permits it, as that is now; `host` is its client. `inside` and `outside` are its faces.
pub(crate) fn judge(
    host: &Host,
    network: &NetworkConfig,
    exposure: &Exposure,
    names: View<'_>,
    basis: Basis,
    (inside, outside): (&Tuple, &Tuple),
) -> Judgement {
    match basis {
        Basis::Forwarded if exposure.forwards(inside, outside) => Judgement::without_rules(Ok(())),
        Basis::Forwarded => Judgement::without_rules(Err(DropReason::NoFlow)),
        Basis::Allowed { .. } if !exposure.allows(outside) => {
            Judgement::without_rules(Err(DropReason::ClientIsolation))
        }
        Basis::Allowed { .. } | Basis::Rules => judge_by_rules(host, network, names, outside),
    }
}

/// What the source's current rules say; `outside` is the flow as the world sees it, after DNS redirection.
fn judge_by_rules(
    host: &Host,
    network: &NetworkConfig,
    names: View<'_>,
    outside: &Tuple,
) -> Judgement {
    let rules = match &host.rules {
        RulesState::None if is_planted(Defect::NoRulesAccept) => {
            return Judgement::without_rules(Ok(()));
        }
        RulesState::Refused if is_planted(Defect::RefusedRulesAccept) => {
            return Judgement::without_rules(Ok(()));
        }
        RulesState::None => return Judgement::without_rules(Err(DropReason::NoRules)),
        RulesState::Refused => return Judgement::without_rules(Err(DropReason::RulesRefused)),
        RulesState::Active(rules) => rules,
    };
    let decision = rules.evaluate(&subject(network, outside), &names);
    let outcome = match (decision.verdict, decision.by) {
        (rules::Verdict::Accept, DecidedBy::Rule { index, .. }) => {
            let name = rules.rules().get(index).and_then(|(_, rule)| rule.host_name());
            Ok(name.and_then(|name| names.hold(name)))
        }
        (rules::Verdict::Accept, _) => Ok(None),
        (rules::Verdict::Reject, DecidedBy::UnresolvedName { .. }) => {
            Err(DropReason::NameUnresolved)
        }
        (rules::Verdict::Reject, _) => Err(DropReason::RuleRejected),
    };
    Judgement { by: Some(decision.by), outcome }
}

fn subject(network: &NetworkConfig, flow: &Tuple) -> Subject {
    let port = flow.remote_port;
    let upper = match flow.protocol {
        protocol::TCP => Upper::Tcp { port },
        protocol::UDP => Upper::Udp { port },
        // The remote port of an ICMP flow is the type of its query, which is a byte.
        icmp if icmp == ip::icmp(flow.remote) => {
            Upper::Icmp { icmp_type: u8::try_from(port).unwrap_or(u8::MAX) }
        }
        protocol => Upper::Other { protocol },
    };
    let is_dns_server = network.is_resolver(flow.remote);
    Subject { destination: flow.remote, upper, is_dns_server }
}
