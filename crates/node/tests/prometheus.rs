//! A real Prometheus scrapes a node: directly, and all hosts through the node, found by its list of
//! targets. What docs/METRICS.md tells people to write is checked by the same.

#![expect(clippy::unwrap_used, reason = "a test may fail where it likes")]

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k2i::metrics::Grouping;
use kumo_node::{Node, NodeConfig};
use serde_json::Value;
use support::{WAIT_MAX, ask, get, tcp, tool, unix};

/// A Prometheus with a directory of its own; `Drop` kills and reaps it.
struct Prometheus {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Starts it on a port that was free a moment ago, and waits until it answers.
    fn spawn(program: &Path, config: &str) -> Prometheus {
        let mut why = String::new();
        for _ in 0..3 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name).display().to_string();
            std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let child = Command::new(program)
                .arg(format!("--config.file={}", path("prometheus.yml")))
                .arg(format!("--storage.tsdb.path={}", path("data")))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            let mut prometheus = Prometheus { child, port, dir };
            match prometheus.wait_until_ready() {
                Ok(()) => return prometheus,
                // Somebody else may have taken the port meanwhile.
                Err(log) => why = log,
            }
        }
        panic!("Prometheus does not start: {why}");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < WAIT_MAX {
            if self.child.try_wait().unwrap().is_some() {
                break;
            }
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", self.port))
                && ask(stream, "GET", "/-/ready", "", "").status == 200
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(self.log())
    }

    /// What a query finds now: labels and value of each series.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02X}").unwrap();
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let reply = ask(stream, "GET", &format!("/api/v1/query?query={encoded}"), "", "");
        assert_eq!(reply.status, 200, "{query}: {}", reply.body);
        let answer = reply.json();
        let series = answer["data"]["result"].as_array().unwrap();
        let read = |one: &Value| {
            (one["metric"].clone(), one["value"][1].as_str().unwrap().parse().unwrap())
        };
        series.iter().map(read).collect()
    }

    /// The same once there is something.
    #[track_caller]
    fn until(&self, query: &str) -> Vec<(Value, f64)> {
        let begun = Instant::now();
        loop {
            let found = self.query(query);
            if !found.is_empty() {
                return found;
            }
            assert!(begun.elapsed() < WAIT_MAX, "nothing for {query}; the log says {}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    fn one(&self, query: &str) -> f64 {
        let found = self.until(query);
        assert_eq!(found.len(), 1, "for {query}: {found:?}");
        found[0].1
    }
}

fn node(dir: &Path) -> Node {
    let (dc, host) = (Some("tokyo".to_owned()), Some("web-1".to_owned()));
    let metrics = Grouping { top: 200, ..Grouping::default() };
    Node::start(&NodeConfig { dc, host, metrics, ..support::config(dir) }).unwrap()
}

#[test]
fn a_real_prometheus_scrapes_a_node() {
    let Some(program) = tool("prometheus") else { return };
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let address = node.address().unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
         scrape_configs:\n\
         - job_name: direct\n  static_configs: [{{targets: ['{address}']}}]\n\
         - job_name: kumo\n  http_sd_configs: [{{url: 'http://{address}/v2/prometheus/targets', refresh_interval: 1s}}]\n"
    );
    let prometheus = Prometheus::spawn(&program, &config);
    for (job, instance) in [("direct", address.to_string()), ("kumo", "tokyo/web-1".to_owned())] {
        let of = format!("{{job=\"{job}\",instance=\"{instance}\"}}");
        assert!((prometheus.one(&format!("up{of} == 1")) - 1.0).abs() < 0.1);
        let total = get(&node, "/v2/host")["memory"]["total"].as_f64().unwrap();
        let size = prometheus.one(&format!("kumo_host_memory_size_bytes{of}"));
        assert!((size - total).abs() < 1.0, "{size} is not {total}");
        assert!(
            (prometheus.one(&format!("count(kumo_host_cpu_seconds_total{of})")) - 8.0).abs() < 0.1
        );
        // This process is the node, and one of a group. Its host uses some CPU in any case.
        let own = format!("kumo_group_resident_bytes{{job=\"{job}\",comm=\"prometheus\"}} > 0");
        assert!(!prometheus.until(&own).is_empty());
        assert!(
            prometheus.one(&format!("sum(rate(kumo_host_cpu_seconds_total{of}[20s])) > 0")) > 0.0
        );
        assert!(
            (prometheus.one(&format!("kumo_cluster_hosts{{job=\"{job}\",state=\"alive\"}}")) - 1.0)
                .abs()
                < 0.1
        );
        let bucket = format!("kumo_agent_scan_seconds_bucket{{job=\"{job}\",le=\"+Inf\"}} > 0");
        assert!(!prometheus.until(&bucket).is_empty());
    }
    // Whoever it finds by the list knows where it is.
    let (labels, _) = prometheus.until("kumo_host_info{job=\"kumo\"}").remove(0);
    assert_eq!((&labels["dc"], &labels["host"]), (&"tokyo".into(), &"web-1".into()));
    // Each sample was taken, and none twice.
    let dropped = "scrape_samples_scraped - scrape_samples_post_metric_relabeling != 0";
    assert_eq!(prometheus.query(dropped), []);
    assert!(!prometheus.log().contains("duplicate"), "{}", prometheus.log());
    for query in fenced("promql").iter().flat_map(|block| block.split("\n\n")) {
        prometheus.query(query);
    }
}

/// The code blocks of docs/METRICS.md in a language.
fn fenced(language: &str) -> Vec<String> {
    let page = include_str!("../../../docs/METRICS.md");
    let begin = format!("```{language}\n");
    let blocks =
        page.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let blocks: Vec<_> = blocks.collect();
    assert!(!blocks.is_empty(), "docs/METRICS.md has no {language}");
    blocks
}

#[test]
fn promtool_finds_nothing_wrong() {
    let Some(promtool) = tool("promtool") else { return };
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir.path().join("node"));
    let text = ask(tcp(&node), "GET", "/metrics", "", "").body;
    let mut check = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(checked.status.success() && said.is_empty(), "{said}");

    // What the page tells people to write, in the files that it names.
    let [scrape, rules] = &fenced("yaml")[..] else { panic!("a configuration and rules") };
    std::fs::write(dir.path().join("prometheus.yml"), scrape).unwrap();
    std::fs::write(dir.path().join("kumo-rules.yml"), rules).unwrap();
    let config = dir.path().join("prometheus.yml");
    let checked = Command::new(&promtool).args(["check", "config"]).arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
    assert!(checked.status.success() && said.contains("rules found"), "{said}");
}

#[test]
fn a_list_of_targets_names_every_host_where_it_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let reply = ask(tcp(&node), "GET", "/v2/prometheus/targets", "", "");
    assert_eq!((reply.status, reply.kind.as_str()), (200, "application/json"), "{}", reply.body);
    let targets = reply.json();
    assert_eq!(targets.as_array().unwrap().len(), 1);
    let port = node.address().unwrap().port();
    assert_eq!(targets[0]["targets"], serde_json::json!([format!("localhost:{port}")]));
    let path = targets[0]["labels"]["__metrics_path__"].as_str().unwrap();
    let scraped = ask(tcp(&node), "GET", path, "", "");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((scraped.status, scraped.kind.as_str()), (200, kind), "{}", scraped.body);
    assert!(
        scraped.body.ends_with("# EOF\n") && scraped.body.contains("kumo_host_info{dc=\"tokyo\"")
    );
    // On the socket nobody knows which address Prometheus would reach.
    assert_eq!(ask(unix(&node), "GET", "/v2/prometheus/targets", "", "").status, 400);
    let none = ask(unix(&node), "GET", "/v2/hosts/tokyo/none/metrics", "", "");
    assert_eq!(none.status, 404, "{}", none.body);
    // Of many they are documents of text.
    let all = get(&node, "/v2/all/metrics");
    let body = all["answers"][0]["body"].as_str().unwrap();
    assert!(body.contains("kumo_cluster_hosts{state=\"alive\"} 1\n"), "{body}");
}
