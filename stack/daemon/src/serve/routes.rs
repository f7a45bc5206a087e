//! Paths and methods of the control API, and what each of them does.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::control::Control;
use super::{metrics, query};
use crate::api::{
    ATTACH_KEYS, ApiError, AttachRequest, LEVEL_KEYS, LIMIT_KEYS, LevelRequest, LimitsRequest,
    PortsRequest,
};
use crate::flows::QUERY_KEYS;
use crate::keys;
use crate::settings::OPTION_KEYS;
use crate::sys;

/// Content type of most answers.
pub(super) const JSON: &str = "application/json";

/// The description of the API.
const OPENAPI: &str = include_str!("../../dist/openapi.json");

/// An answer that is a success.
#[derive(Debug)]
pub(super) struct Answer {
    /// Status code of HTTP.
    pub(super) status: u16,
    /// Content type.
    pub(super) kind: &'static str,
    pub(super) body: String,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// The daemon serves requests.
    Health,
    /// All stats as text.
    Metrics,
    /// The description of the API.
    OpenApi,
    /// All stats as JSON.
    Stats,
    /// Every container.
    List,
    /// A container joins.
    Attach,
    /// One container with its stats.
    Show,
    /// Limits, guarantee or group of a container change.
    SetLimits,
    /// A container leaves.
    Detach,
    /// The flows of a container.
    Flows,
    /// Ports of a container are opened.
    Publish,
    /// Ports of a container are closed.
    Unpublish,
    /// Every group with its meter.
    Groups,
    /// Limits of a group or of the host change.
    SetLevel,
    /// Answered by the server itself, since its answer has no end.
    Events,
    /// As well.
    Capture,
}

/// Method, path and operation of every route. `{name}` is the name of a container or a group.
pub(super) const ROUTES: &[(&str, &str, Operation)] = &[
    ("GET", "/healthz", Operation::Health),
    ("GET", "/metrics", Operation::Metrics),
    ("GET", "/openapi.json", Operation::OpenApi),
    ("GET", "/v1/stats", Operation::Stats),
    ("GET", "/v1/containers", Operation::List),
    ("POST", "/v1/containers", Operation::Attach),
    ("GET", "/v1/containers/{name}", Operation::Show),
    ("PATCH", "/v1/containers/{name}", Operation::SetLimits),
    ("DELETE", "/v1/containers/{name}", Operation::Detach),
    ("GET", "/v1/containers/{name}/flows", Operation::Flows),
    ("POST", "/v1/containers/{name}/ports", Operation::Publish),
    ("DELETE", "/v1/containers/{name}/ports", Operation::Unpublish),
    ("GET", "/v1/containers/{name}/capture", Operation::Capture),
    ("GET", "/v1/events", Operation::Events),
    ("GET", "/v1/groups", Operation::Groups),
    ("PATCH", "/v1/groups/{name}", Operation::SetLevel),
];

/// The place of the name in a route's path.
const NAME: &str = "{name}";

/// Carries out one request.
pub(super) fn answer(
    control: &Control,
    method: &str,
    path: &str,
    query: &str,
    body: &[u8],
) -> Result<Answer, ApiError> {
    let (operation, name) = find(method, path)?;
    match operation {
        Operation::Health => Ok(Answer {
            status: 200,
            kind: "text/plain",
            body: "ok
"
            .to_owned(),
        }),
        Operation::Metrics => {
            let body = metrics::render(&control.stats(None)?, control.restarts);
            // The series of a thousand containers take 100 MB while they are made.
            sys::release_free_memory();
            Ok(Answer { status: 200, kind: metrics::TEXT, body })
        }
        Operation::OpenApi => Ok(Answer { status: 200, kind: JSON, body: OPENAPI.to_owned() }),
        Operation::Stats => json(200, &control.stats(None)?),
        Operation::List => json(200, &control.list()),
        Operation::Attach => {
            let allowed: Vec<&str> = ATTACH_KEYS.into_iter().chain(OPTION_KEYS).collect();
            let request: AttachRequest = parse(body, &allowed)?;
            json(201, &control.attach(request)?)
        }
        Operation::Show => {
            // The container may end between the two: then both report that there is none.
            let mut shown = serde_json::to_value(control.one(name)?).unwrap_or_default();
            let stats = control.stats(Some(name))?;
            shown["stats"] = serde_json::to_value(stats.containers.first()).unwrap_or_default();
            json(200, &shown)
        }
        Operation::SetLimits => {
            let request: LimitsRequest = parse(body, &LIMIT_KEYS)?;
            json(200, &control.set(name, request)?)
        }
        Operation::Detach => {
            control.detach(name)?;
            json(200, &Value::Object(Map::new()))
        }
        Operation::Flows => json(200, &control.flows(name, &query::parse(query, &QUERY_KEYS)?)?),
        Operation::Publish => {
            let request = ports(body)?;
            json(200, &control.publish(name, &request.publish)?)
        }
        Operation::Unpublish => {
            let request = ports(body)?;
            json(200, &control.unpublish(name, &request.publish)?)
        }
        Operation::Events | Operation::Capture => {
            Err(ApiError::new(500, "internal", "the answer is a stream"))
        }
        Operation::Groups => json(200, &serde_json::json!({ "groups": control.groups() })),
        Operation::SetLevel => {
            let request: LevelRequest = parse(body, &LEVEL_KEYS)?;
            json(200, &control.set_level(name, request)?)
        }
    }
}

/// The operation of a request, and the name in its path.
pub(super) fn find<'a>(method: &str, path: &'a str) -> Result<(Operation, &'a str), ApiError> {
    let matching = ROUTES.iter().filter_map(|(allowed, route, operation)| {
        Some((*allowed, *operation, name_in(route, path)?))
    });
    // A path without this method is another error than no such path.
    let matching: Vec<_> = matching.collect();
    match matching.iter().find(|(allowed, ..)| *allowed == method) {
        Some((_, operation, name)) => Ok((*operation, name)),
        None if matching.is_empty() => Err(ApiError::new(404, "no_such_path", "no such path")),
        None => {
            let allowed: Vec<_> = matching.iter().map(|(allowed, ..)| *allowed).collect();
            Err(ApiError::new(405, "method_not_allowed", allowed.join(", ")))
        }
    }
}

/// The name in a path that the route matches; empty where the route has none.
fn name_in<'a>(route: &str, path: &'a str) -> Option<&'a str> {
    let (routes, parts) = (route.split('/'), path.split('/'));
    // `zip` below would ignore the parts that one of them has in addition.
    if routes.clone().count() != parts.clone().count() {
        return None;
    }
    let mut name = "";
    for (route, part) in routes.zip(parts) {
        if route == NAME && !part.is_empty() {
            name = part;
        } else if route != part {
            return None;
        }
    }
    Some(name)
}

/// Parses the body of a request: an object with those keys.
fn parse<T: DeserializeOwned>(body: &[u8], allowed: &[&str]) -> Result<T, ApiError> {
    let object: Map<String, Value> = serde_json::from_slice(body).map_err(|e| {
        ApiError::invalid("bad_json", format!("the body must be a JSON object: {e}"))
    })?;
    keys::parse(&object, allowed).map_err(|e| {
        let code = if e.unknown { "unknown_key" } else { "bad_value" };
        ApiError::invalid(code, e.message).key(e.key)
    })
}

/// Parses the ports of a request, at least one.
fn ports(body: &[u8]) -> Result<PortsRequest, ApiError> {
    let request: PortsRequest = parse(body, &["publish"])?;
    if request.publish.is_empty() {
        let message = "publish: missing: at least one port is needed";
        return Err(ApiError::invalid("missing_key", message).key("publish"));
    }
    Ok(request)
}

/// An answer of that value.
fn json(status: u16, body: &impl Serialize) -> Result<Answer, ApiError> {
    let body = serde_json::to_string(body);
    let body = body.map_err(|e| ApiError::new(500, "internal", e.to_string()))?;
    Ok(Answer { status, kind: JSON, body })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Keys of an object in the document.
    fn keys(of: &Value) -> BTreeSet<&str> {
        of.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn the_document_describes_every_route_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap().iter();
        let described: BTreeSet<(String, String)> = paths
            .flat_map(|(path, methods)| {
                keys(methods).into_iter().map(move |m| (m.to_uppercase(), path.clone()))
            })
            .collect();
        let routes = ROUTES.iter().map(|(m, path, _)| ((*m).to_owned(), (*path).to_owned()));
        assert_eq!(described, routes.collect());
    }

    #[test]
    fn the_document_has_the_keys_of_requests_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let attach: Vec<&str> = ATTACH_KEYS.into_iter().chain(OPTION_KEYS).collect();
        for (name, allowed) in [
            ("AttachRequest", &attach[..]),
            ("LimitsRequest", &LIMIT_KEYS),
            ("LevelRequest", &LEVEL_KEYS),
            ("PortsRequest", &["publish"]),
            ("Error", &["code", "message", "key"]),
        ] {
            let schema = &document["components"]["schemas"][name];
            assert_eq!(keys(&schema["properties"]), allowed.iter().copied().collect(), "{name}");
        }
        // Every reference leads to something.
        let refs = OPENAPI.split("\"$ref\": \"#").skip(1);
        for pointer in refs.map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn a_request_without_a_port_names_the_key() {
        for body in ["{}", r#"{"publish": []}"#] {
            let error = ports(body.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.body.key.as_deref()), (400, Some("publish")));
        }
        assert_eq!(ports(br#"{"publish": ["80:80"]}"#).unwrap().publish.len(), 1);
    }

    #[test]
    fn a_path_matches_whole_or_not_at_all() {
        assert_eq!(find("GET", "/v1/containers/web").unwrap(), (Operation::Show, "web"));
        assert_eq!(find("PATCH", "/v1/groups/a").unwrap(), (Operation::SetLevel, "a"));
        for path in ["", "/", "//", "/v1", "/v1/containers/", "/v1/containers/a/", "/x/containers"]
        {
            assert_eq!(find("GET", path).unwrap_err().status, 404, "{path}");
        }
        assert_eq!(find("PUT", "/v1/stats").unwrap_err().status, 405);
    }
}
