//! The commands that control a running daemon, over its socket.

mod capture;
mod flows;
mod http;
pub mod remote;
mod table;
mod top;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api::{
    AttachRequest, ContainerInfo, ContainerList, LEVEL_KEYS, LIMIT_KEYS, PortsRequest, socket_path,
};
use crate::cli::{
    AttachArgs, ClientArgs, DetachArgs, EventsArgs, ListArgs, PublishArgs, SetArgs, StatsArgs,
};
use crate::exit::Failure;
use crate::keys::hint;
use crate::settings::ContainerOptions;
use crate::stdout::print;
use crate::units::{Bytes, parse_size};
pub use capture::capture;
pub use flows::flows;
use http::Connection;
use remote::{Remote, RemoteError, parse};
use table::Table;
pub use top::top;

/// `skbudget attach`.
pub fn attach(args: AttachArgs) -> Result<u8, Failure> {
    let options = ContainerOptions {
        min: args.min.map(Bytes),
        weight: args.weight,
        ..ContainerOptions::from(&args.container)
    };
    // The daemon has another working directory.
    let netns = args.netns.map(|path| std::path::absolute(&path).unwrap_or(path));
    let AttachArgs { name, pid, ifname, address, group, .. } = args;
    let request = AttachRequest { name: Some(name), pid, netns, ifname, address, group, options };
    send::<ContainerInfo>(&args.client, "POST", "/v1/containers", Some(&request)).map(|_| 0)
}

/// `skbudget detach`.
pub fn detach(args: DetachArgs) -> Result<u8, Failure> {
    let path = path_of("containers", &args.name, "")?;
    send::<Value>(&args.client, "DELETE", &path, None::<&()>).map(|_| 0)
}

/// `skbudget ls`.
pub fn ls(args: ListArgs) -> Result<u8, Failure> {
    let answer: Value = send(&args.client, "GET", "/v1/containers", None::<&()>)?;
    if args.json {
        return print(&format!("{answer}\n")).map(|()| 0);
    }
    let list: ContainerList = parse(answer)?;
    // The columns that may be long come last: a narrow terminal cuts them.
    let mut table =
        Table::new(&["NAME", "GROUP", "ADDRESS", "DEVICE", "HARD", "ATTACHED", "PORTS"]);
    for container in list.containers {
        let ContainerInfo { name, pid, netns, ifname, ip, group, hard_bytes, publish, .. } =
            container;
        let attached = match (pid, netns) {
            (Some(pid), _) => format!("pid {pid}"),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "-".to_owned(),
        };
        let hard = hard_bytes.map_or_else(|| "-".to_owned(), table::bytes);
        let ports: Vec<String> = publish.into_iter().map(String::from).collect();
        let group = group.unwrap_or_else(|| "-".to_owned());
        table.row([name, group, ip.to_string(), ifname, hard, attached, ports.join(" ")]);
    }
    print(&table.render()).map(|()| 0)
}

/// `skbudget stats`.
pub fn stats(args: StatsArgs) -> Result<u8, Failure> {
    // The daemon measures all containers in one pass: a request for one would not be cheaper.
    let mut answer: Value = send(&args.client, "GET", "/v1/stats", None::<&()>)?;
    if let (Some(name), Some(all)) = (&args.name, answer["containers"].as_array_mut()) {
        all.retain(|container| container["name"] == name.as_str());
        if all.is_empty() {
            return Err(Failure::other(format!("no container is named {name:?}")));
        }
    }
    if args.json {
        return print(&format!("{answer}\n")).map(|()| 0);
    }
    let bytes =
        |of: &Value, key: &str| of[key].as_u64().map_or_else(|| "-".to_owned(), table::bytes);
    let text = |of: &Value, key: &str| of[key].as_str().unwrap_or("-").to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or_default().to_string();
    let columns =
        ["NAME", "USAGE", "SOFT", "HARD", "PRESSURE", "FLOWS", "SENT", "RECEIVED", "REFUSED"];
    let mut table = Table::new(&columns);
    for container in answer["containers"].as_array().into_iter().flatten() {
        table.row([
            text(container, "name"),
            bytes(container, "usage_bytes"),
            bytes(container, "soft_bytes"),
            bytes(container, "hard_bytes"),
            text(container, "pressure"),
            number(&container["flows"]),
            bytes(container, "bytes_from_guest"),
            bytes(container, "bytes_to_guest"),
            number(&container["counters"]["AdmissionDenied"]),
        ]);
    }
    // What is above the containers; not of interest for one of them.
    let above = if args.name.is_none() { answer["groups"].as_array() } else { None };
    for group in above.into_iter().flatten().chain(args.name.is_none().then_some(&answer["host"])) {
        let name = group["name"].as_str().unwrap_or("host");
        let none = String::new;
        table.row([
            format!("@{name}"),
            bytes(group, "usage_bytes"),
            bytes(group, "soft_bytes"),
            bytes(group, "hard_bytes"),
            text(group, "pressure"),
            none(),
            none(),
            none(),
            number(&group["failcnt"]),
        ]);
    }
    print(&table.render()).map(|()| 0)
}

/// `skbudget events`.
pub fn events(args: EventsArgs) -> Result<u8, Failure> {
    let socket = socket_path(args.client.socket.clone());
    let mut id = Value::Null;
    let connection = Connection::open(&socket)?;
    connection.follow("/v1/events", args.after, |line| match line.split_once(": ") {
        Some(("id", number)) => {
            id = number.parse::<u64>().map_or(Value::Null, Value::from);
            Ok(())
        }
        Some(("data", event)) => {
            let mut event: Value = serde_json::from_str(event).unwrap_or_default();
            // Needed to resume, so it is printed as a part of the event.
            event["id"] = id.clone();
            print(&format!("{event}\n"))
        }
        // The type is part of the data; comments keep the connection alive.
        _ => Ok(()),
    })?;
    Ok(0)
}

/// `skbudget set`.
pub fn set(args: SetArgs) -> Result<u8, Failure> {
    let (path, keys) = match args.name.strip_prefix('@') {
        Some(group) => (path_of("groups", group, "")?, &LEVEL_KEYS[..]),
        None => (path_of("containers", &args.name, "")?, &LIMIT_KEYS[..]),
    };
    let limits = limits(&args.values, keys)?;
    send::<Value>(&args.client, "PATCH", &path, Some(&limits)).map(|_| 0)
}

/// `skbudget publish`.
pub fn publish(args: PublishArgs) -> Result<u8, Failure> {
    ports("POST", args)
}

/// `skbudget unpublish`.
pub fn unpublish(args: PublishArgs) -> Result<u8, Failure> {
    ports("DELETE", args)
}

/// Opens or closes ports.
fn ports(method: &str, args: PublishArgs) -> Result<u8, Failure> {
    let path = path_of("containers", &args.name, "/ports")?;
    let request = PortsRequest { publish: args.ports };
    send::<ContainerInfo>(&args.client, method, &path, Some(&request)).map(|_| 0)
}

/// `KEY=VALUE` as typed, as the object that changes these limits. `keys`: those that are allowed.
fn limits(values: &[String], keys: &[&str]) -> Result<Value, Failure> {
    let mut limits = json!({});
    for typed in values {
        let wrong = |what: String| Failure::usage(format!("{typed:?}: {what}"));
        let Some((key, value)) = typed.split_once('=') else {
            return Err(wrong("must be KEY=VALUE".to_owned()));
        };
        if !keys.contains(&key) {
            return Err(wrong(format!("unknown key{}", hint(key, keys))));
        }
        if limits.get(key).is_some() {
            return Err(wrong(format!("{key} is given twice")));
        }
        limits[key] = match value {
            // The daemon then derives it from the other limits.
            "default" => Value::Null,
            name if key == "group" => name.into(),
            size => parse_size(size).map_err(wrong)?.into(),
        };
    }
    Ok(limits)
}

/// The path of a container or a group. A name that cannot be one must not become another path.
fn path_of(kind: &str, name: &str, rest: &str) -> Result<String, Failure> {
    crate::cli::parse_name(name).map_err(|e| Failure::usage(format!("{name:?}: {e}")))?;
    Ok(format!("/v1/{kind}/{name}{rest}"))
}

/// Sends one request and returns the daemon's answer.
fn send<T: DeserializeOwned>(
    client: &ClientArgs,
    method: &str,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, Failure> {
    Ok(Remote::new(client.socket.clone()).send(method, path, body)?)
}

/// Sends a query. `None`: what the path names does not exist.
fn try_send<T: DeserializeOwned>(client: &ClientArgs, path: &str) -> Result<Option<T>, Failure> {
    // A container may end between the list that named it and this request.
    match Remote::new(client.socket.clone()).send("GET", path, None::<&()>) {
        Err(RemoteError::Refused { status: 404, .. }) => Ok(None),
        answer => Ok(Some(answer?)),
    }
}

/// Names of all containers.
fn names(client: &ClientArgs) -> Result<Vec<String>, Failure> {
    let list: ContainerList = send(client, "GET", "/v1/containers", None::<&()>)?;
    Ok(list.containers.into_iter().map(|container| container.name).collect())
}

/// The failure that the daemon reports.
fn refused(status: u16, answer: Value) -> Failure {
    remote::refused(status, answer).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::USAGE;

    #[test]
    fn limits_as_typed() {
        let parse = |values: &[&str]| {
            let values: Vec<_> = values.iter().map(ToString::to_string).collect();
            limits(&values, &LIMIT_KEYS)
        };
        let set = parse(&["hard=64MiB", "soft=default", "group=web"]).unwrap();
        assert_eq!(set, json!({"hard": 64 << 20, "soft": null, "group": "web"}));
        for (values, expected) in [
            (&["hard"][..], "KEY=VALUE"),
            (&["hrad=1MiB"], "did you mean hard?"),
            (&["hard=1x"], "unknown unit"),
            (&["hard=1MiB", "hard=2MiB"], "twice"),
        ] {
            let failure = parse(values).unwrap_err();
            assert_eq!(failure.code, USAGE);
            assert!(failure.message.contains(expected), "{failure}");
        }
    }

    #[test]
    fn a_name_is_not_another_path() {
        assert_eq!(path_of("containers", "web", "/ports").unwrap(), "/v1/containers/web/ports");
        for name in ["", "..", "a/b", "a?b", "a b", "\u{e9}"] {
            assert_eq!(path_of("groups", name, "").unwrap_err().code, USAGE, "{name}");
        }
    }
}
