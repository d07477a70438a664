//! What the rules of a source say about a flow.

use rules::{NoNames, Subject, Upper};

use crate::clients::{Host, RulesState};
use crate::conntrack::{Basis, Tuple};
use crate::exposure::Exposure;
use crate::uplink::NetworkConfig;
use crate::verdict::DropReason;
use crate::wire::protocol;

/// Judges a flow by what permits it, as that is now; `host` is its client. `inside` and `outside` are its faces.
pub(crate) fn judge(
    host: &Host,
    network: &NetworkConfig,
    exposure: &Exposure,
    basis: Basis,
    (inside, outside): (&Tuple, &Tuple),
) -> Result<(), DropReason> {
    match basis {
        Basis::Forwarded if exposure.forwards(inside, outside) => Ok(()),
        Basis::Forwarded => Err(DropReason::NoFlow),
        Basis::Allowed { .. } if !exposure.allows(outside) => Err(DropReason::ClientIsolation),
        Basis::Allowed { .. } | Basis::Rules => judge_by_rules(host, network, outside),
    }
}

/// What the source's current rules say; `outside` is the flow as the world sees it, after DNS redirection.
fn judge_by_rules(host: &Host, network: &NetworkConfig, outside: &Tuple) -> Result<(), DropReason> {
    let rules = match &host.rules {
        RulesState::None => return Err(DropReason::NoRules),
        RulesState::Refused => return Err(DropReason::RulesRefused),
        RulesState::Active(rules) => rules,
    };
    match rules.evaluate(&subject(network, outside), &NoNames).verdict {
        rules::Verdict::Accept => Ok(()),
        rules::Verdict::Reject => Err(DropReason::RuleRejected),
    }
}

fn subject(network: &NetworkConfig, flow: &Tuple) -> Subject {
    let port = flow.remote_port;
    let upper = match flow.protocol {
        protocol::TCP => Upper::Tcp { port },
        protocol::UDP => Upper::Udp { port },
        // The remote port of an ICMP flow is the type of its query, which is a byte.
        protocol::ICMP => Upper::Icmp { icmp_type: u8::try_from(port).unwrap_or(u8::MAX) },
        protocol => Upper::Other { protocol },
    };
    let is_dns_server = network.is_resolver(flow.remote);
    Subject { destination: flow.remote, upper, is_dns_server }
}
