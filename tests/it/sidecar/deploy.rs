//! The configurations of `deploy/sidecar`: what cannot be run here is read as those read it who would run it.

use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::PathBuf};
use tokio::process::Command;

use super::Sidecar;
use crate::{
    clients::python,
    support::{Stand, Store},
};

fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/sidecar").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(shipped(name)).expect("a file")
}

async fn configured(name: &str) -> Value {
    let path = shipped(name);
    serde_json::from_str(&python("proxies.py", &[], &[path.to_str().unwrap()]).await[0]).expect("JSON")
}

fn names<'a>(list: &'a Value, member: &str) -> BTreeSet<String> {
    let name = |one: &'a Value| one.get(member).unwrap_or(one).as_str().expect("a name").to_ascii_lowercase();
    list.as_array().unwrap_or_else(|| panic!("{list}")).iter().map(name).collect()
}

/// Every header that says who calls is passed on by every proxy, so that none of a client's arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_proxy_passes_all_headers_on() {
    let stand = Stand::new(Store::Embedded).await;
    let sidecar = Sidecar::new(&stand).await;
    let (_, token) = stand.task_with_token().await;
    let told = sidecar.get("/auth", &[("authorization", &format!("Bearer {token}"))]).await;
    let all = told.headers.keys().map(|name| name.as_str().to_owned()).filter(|name| name.starts_with("remit-"));
    let all: BTreeSet<_> = all.collect();
    assert_eq!(all.len(), 10);

    let nginx = read("nginx.conf");
    for name in &all {
        let variable = name.replace('-', "_");
        assert!(nginx.contains(&format!("auth_request_set ${variable} $upstream_http_{variable};")), "{name}");
        let set = nginx
            .lines()
            .map(str::trim)
            .filter(|line| line.to_ascii_lowercase().starts_with(&format!("proxy_set_header {name} ")));
        assert_eq!(set.collect::<Vec<_>>().len(), 1, "{name}");
        assert!(nginx.contains(&format!(" ${variable};")), "{name}");
    }
    let traefik = configured("traefik.yaml").await;
    let asked = &traefik["http"]["middlewares"]["remit"]["forwardAuth"];
    assert_eq!(names(&asked["authResponseHeaders"], ""), all);
    assert_eq!(asked["trustForwardHeader"], false);
    assert_eq!(asked["address"], "http://127.0.0.1:8421/auth");
    assert_eq!(names(&asked["authRequestHeaders"], ""), BTreeSet::from(["authorization", "dpop"].map(str::to_owned)));
    // What reads an underscore as a hyphen must find none of the client's, either.
    assert_eq!(
        traefik["http"]["routers"]["git"]["middlewares"],
        json!(["no-lookalikes", "remit", "without-token"]),
        "in this order"
    );
    let emptied =
        traefik["http"]["middlewares"]["no-lookalikes"]["headers"]["customRequestHeaders"].as_object().unwrap();
    assert!(emptied.values().all(|value| value == ""), "{emptied:?}");
    let emptied: BTreeSet<_> = emptied.keys().map(|name| name.to_ascii_lowercase()).collect();
    assert_eq!(emptied, all.iter().map(|name| name.replace('-', "_")).collect());

    let filter = configured("envoy-http.yaml").await["typed_config"].clone();
    let http = &filter["http_service"];
    assert_eq!(names(&http["authorization_response"]["allowed_upstream_headers"]["patterns"], "exact"), all);
    assert_eq!(
        names(&filter["allowed_headers"]["patterns"], "exact"),
        BTreeSet::from(["authorization", "dpop"].map(str::to_owned))
    );
    assert_eq!(
        (&http["path_prefix"], &http["server_uri"]["uri"]),
        (&json!("/ext_authz"), &json!("http://127.0.0.1:8421"))
    );
    assert!(filter.get("failure_mode_allow").is_none(), "false is not written: {filter}");
}

#[tokio::test]
async fn envoy_asks_before_it_routes() {
    let config = configured("envoy.yaml").await;
    let manager = &config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    let filters = manager["http_filters"].as_array().unwrap();
    assert_eq!(
        names(&json!(filters), "name"),
        BTreeSet::from(["envoy.filters.http.ext_authz", "envoy.filters.http.router"].map(str::to_owned))
    );
    let filter = &filters[0]["typed_config"];
    assert_eq!(filter["grpc_service"]["envoy_grpc"]["cluster_name"], "remit_verifier");
    assert!(filter["include_peer_certificate"] == true && filter.get("failure_mode_allow").is_none(), "{filter}");
    assert_eq!(manager["common_http_protocol_options"]["headers_with_underscores_action"], "REJECT_REQUEST");
    let routes = &manager["route_config"]["virtual_hosts"][0]["routes"];
    let demanded = &routes[0]["typed_per_filter_config"]["envoy.filters.http.ext_authz"]["check_settings"];
    assert_eq!(demanded["context_extensions"], json!({"privilege": "write"}));
    assert!(routes[1].get("typed_per_filter_config").is_none());
    let verifier = &config["static_resources"]["clusters"][0];
    let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
    assert_eq!(verifier.pointer(address).unwrap(), &json!({"address": "127.0.0.1", "port_value": 8421}));
    let protocol = verifier["typed_extension_protocol_options"].as_object().unwrap().values().next().unwrap();
    assert!(protocol["explicit_http_config"]["http2_protocol_options"].is_object(), "{protocol}");
}

/// Every command that is shown is one.
#[tokio::test]
async fn the_commands_are_understood() {
    let mut found = 0;
    for entry in fs::read_dir(shipped("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        for line in read(&name).lines().filter(|line| line.contains("remit verifier --")) {
            let command = line.split_once("remit ").unwrap().1;
            // Whatever stands before it is read first.
            let output =
                Command::new(env!("CARGO_BIN_EXE_remit")).args(command.split(' ')).arg("--help").output().await;
            assert!(output.unwrap().status.success(), "{name}: {line}");
            found += 1;
        }
    }
    assert_eq!(found, 5);
    let unknown =
        Command::new(env!("CARGO_BIN_EXE_remit")).args(["verifier", "--brokers", "x", "--help"]).output().await;
    assert!(!unknown.unwrap().status.success());
    // A unit is sections of settings.
    for line in read("remit-verifier.service").lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let section = ["[Unit]", "[Service]", "[Install]"].contains(&line);
        let setting =
            line.split_once('=').is_some_and(|(name, _)| name.bytes().all(|octet| octet.is_ascii_alphanumeric()));
        assert!(section || setting, "{line}");
    }
}
