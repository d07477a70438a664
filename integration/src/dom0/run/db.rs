//! What scripts and tests ask a running QubesDB server.

use std::io::Read;

use serde_json::{Value, json};

use super::args::Args;
use super::lines::ask;
use super::{Attempt, Failure, Result};
use crate::dom0::keys::{self, Op, Vm};

/// The command `db`.
pub(crate) fn run(args: &Args) -> Result {
    let socket = args.needed("socket")?;
    match *args.positional().as_slice() {
        ["write", key, value] => {
            print(&ask(socket, &json!({"cmd": "write", "key": key, "value": value}))?)
        }
        ["rm", key] => print(&ask(socket, &json!({"cmd": "rm", "key": key}))?),
        ["read", key] => read(socket, key),
        ["list"] => list(socket, "/"),
        ["list", prefix] => list(socket, prefix),
        ["multi"] => multi(socket),
        ["firewall-reload", ip] => {
            firewall_reload(socket, ip, args.get("policy").unwrap_or("drop"))
        }
        ["stats"] => print(&ask(socket, &json!({"cmd": "stats"}))?),
        ["log"] => log(socket, 0),
        ["log", after] => log(socket, number(after)?),
        ["wait-synced"] => wait(socket, json!({"cmd": "wait-synced"}), "30"),
        ["wait-synced", seconds] => wait(socket, json!({"cmd": "wait-synced"}), seconds),
        ["wait-handled", ip, count, seconds] => {
            wait(socket, json!({"cmd": "wait-handled", "ip": ip, "count": number(count)?}), seconds)
        }
        ["wait-key", key, seconds] => wait(socket, json!({"cmd": "wait-key", "key": key}), seconds),
        ["wait-key", key, seconds, value] => {
            wait(socket, json!({"cmd": "wait-key", "key": key, "value": value}), seconds)
        }
        ["quit"] => print(&ask(socket, &json!({"cmd": "quit"}))?),
        _ => Err(Failure::Usage("bad db command".into())),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Failure::Usage(format!("{text} is no number")))
}

/// Prints an answer; one that is not `ok` is a failure.
fn print(answer: &Value) -> Result {
    println!("{answer}");
    if is_ok(answer) { Ok(()) } else { Err(Failure::Code(1, String::new())) }
}

fn is_ok(answer: &Value) -> bool {
    answer.get("ok") == Some(&Value::Bool(true))
}

fn refused(answer: &Value) -> Failure {
    let error = answer.get("error").and_then(Value::as_str).unwrap_or("refused");
    Failure::Failed(error.to_owned())
}

fn wait(socket: &str, mut request: Value, seconds: &str) -> Result {
    let seconds: f64 =
        seconds.parse().map_err(|_| Failure::Usage(format!("{seconds} is no number")))?;
    if let Some(object) = request.as_object_mut() {
        let timeout = std::time::Duration::try_from_secs_f64(seconds).doing("seconds")?;
        object.insert(
            "timeout_ms".into(),
            json!(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        );
    }
    print(&ask(socket, &request)?)
}

fn read(socket: &str, key: &str) -> Result {
    let answer = ask(socket, &json!({"cmd": "read", "key": key}))?;
    if !is_ok(&answer) {
        return Err(refused(&answer));
    }
    println!("{}", value_of(&answer));
    Ok(())
}

fn value_of(entry: &Value) -> String {
    let text = |name| entry.get(name).and_then(Value::as_str);
    text("value")
        .map_or_else(|| format!("hex:{}", text("value_hex").unwrap_or_default()), str::to_owned)
}

fn list(socket: &str, prefix: &str) -> Result {
    let answer = ask(socket, &json!({"cmd": "list", "prefix": prefix}))?;
    for entry in answer.get("entries").and_then(Value::as_array).into_iter().flatten() {
        println!(
            "{} = {}",
            entry.get("key").and_then(Value::as_str).unwrap_or_default(),
            value_of(entry)
        );
    }
    Ok(())
}

fn log(socket: &str, after: u64) -> Result {
    let answer = ask(socket, &json!({"cmd": "log", "after": after}))?;
    for event in answer.get("events").and_then(Value::as_array).into_iter().flatten() {
        println!("{event}");
    }
    Ok(())
}

fn standard_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).doing("standard input")?;
    Ok(text)
}

fn multi(socket: &str) -> Result {
    let ops: Vec<_> = standard_input()?
        .lines()
        .filter(|line| !line.is_empty())
        .map(parse_op)
        .collect::<Result<_>>()?;
    let replies = batch(socket, &ops)?;
    for reply in &replies {
        println!("{reply}");
    }
    if replies.iter().all(is_ok) { Ok(()) } else { Err(Failure::Code(1, String::new())) }
}

fn parse_op(line: &str) -> Result<Op> {
    let bad = || Failure::Usage(format!("not `write KEY VALUE` or `rm KEY`: {line}"));
    let (verb, rest) = line.split_once(' ').ok_or_else(bad)?;
    match verb {
        "write" => {
            let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
            Ok(Op::Write(key.to_owned(), value.to_owned()))
        }
        "rm" => Ok(Op::Remove(rest.to_owned())),
        _ => Err(bad()),
    }
}

/// Sends changes to be made one after the other; the answers in order.
fn batch(socket: &str, ops: &[Op]) -> Result<Vec<Value>> {
    let ops: Vec<_> = ops
        .iter()
        .map(|op| match op {
            Op::Write(key, value) => json!({"write": [key, value]}),
            Op::Remove(key) => json!({"rm": key}),
        })
        .collect();
    let answer = ask(socket, &json!({"cmd": "batch", "ops": ops}))?;
    match answer.get("replies").and_then(Value::as_array) {
        Some(replies) if replies.len() == ops.len() => Ok(replies.clone()),
        _ => Err(refused(&answer)),
    }
}

/// Makes changes of dom0's own: removals may find nothing, writes must succeed. Prints the times.
fn apply(socket: &str, ops: &[Op]) -> Result {
    let replies = batch(socket, ops)?;
    let (mut times, mut writes) = (Vec::new(), 0);
    for (op, reply) in ops.iter().zip(&replies) {
        if let Op::Write(key, _) = op {
            writes += 1;
            if !is_ok(reply) {
                return Err(Failure::Failed(format!("{key}: {reply}")));
            }
        }
        times.extend(reply.get("xen_ns").and_then(Value::as_u64));
    }
    let forwarded =
        replies.iter().filter(|reply| reply.get("forwarded") == Some(&Value::Bool(true))).count();
    println!(
        "{}",
        json!({
            "ok": true, "first_ns": times.first(), "trigger_ns": times.last(), "last_ns": times.last(),
            "writes": writes, "forwarded": forwarded,
        })
    );
    Ok(())
}

fn firewall_reload(socket: &str, ip: &str, policy: &str) -> Result {
    let rules = keys::rules_from_lines(&standard_input()?);
    apply(socket, &keys::firewall_tree(ip, policy, &rules))
}

/// What the file says of the VM.
pub(crate) fn description(file: &str) -> Result<Vm> {
    let value: Value = serde_json::from_slice(&std::fs::read(file).doing(file)?).doing(file)?;
    Vm::from_json(&value).doing(file)
}

/// The command `netvm-change`: dom0 writes the keys of a start again, one by one.
pub(crate) fn netvm_change(args: &Args) -> Result {
    apply(args.needed("socket")?, &description(args.at(0, "VM.json")?)?.start())
}

/// The command `client-start`.
pub(crate) fn client_start(args: &Args) -> Result {
    let (vm, ip) = (description(args.at(0, "VM.json")?)?, args.at(1, "IP")?);
    let ops = if args.has("after") { vm.client_started(ip) } else { vm.client_start(ip) };
    apply(
        args.needed("socket")?,
        &ops.ok_or_else(|| Failure::Failed(format!("{ip} is no client")))?,
    )
}

/// The command `keys`.
pub(crate) fn print_keys(args: &Args) -> Result {
    let writes =
        description(args.at(0, "VM.json")?)?.start().into_iter().filter_map(|op| match op {
            Op::Write(key, value) => Some((key, Value::String(value))),
            Op::Remove(_) => None,
        });
    println!("{}", Value::Object(writes.collect()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_multi() {
        let op = |line| parse_op(line).unwrap();
        assert_eq!(op("write /a b c"), Op::Write("/a".into(), "b c".into()));
        assert_eq!(op("write /a"), Op::Write("/a".into(), String::new()));
        assert_eq!(op("rm /a/"), Op::Remove("/a/".into()));
        assert!(parse_op("read /a").is_err() && parse_op("rm").is_err());
    }
}
