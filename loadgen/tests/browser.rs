//! The report in a real browser: it sends no network request, has no script and no error, does not scroll sideways, and
//! no text in a chart is cut off or overlaps another, on a desktop and on a phone, light and dark.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn browser() -> String {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let given = std::env::var("CHROMIUM").ok();
    let found = names.map(str::to_owned).into_iter().chain(given).rev().find(|name| {
        Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success())
    });
    found.expect("Chromium: none of its names is installed, nor what CHROMIUM says")
}

/// The page after layout, the messages of the console, and every address that was requested.
fn visit(page: &Path, width: u32, dark: bool) -> (String, String, Vec<String>) {
    let profile = page.with_extension(format!("profile-{width}-{dark}"));
    let log = profile.with_extension("netlog.json");
    let _ = std::fs::remove_dir_all(&profile);
    let out = Command::new(browser())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args([
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--virtual-time-budget=3000",
            "--dump-dom",
        ])
        .arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }))
        .arg(format!("--window-size={width},2000"))
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(out.status.success(), "{}", text(&out.stderr));
    let netlog = std::fs::read_to_string(&log).expect("a network log");
    let _ = std::fs::remove_dir_all(&profile);
    let _ = std::fs::remove_file(&log);
    (text(&out.stdout), text(&out.stderr), addresses(&netlog))
}

/// Requests of the page itself; those that a browser sends at its start have no initiator.
fn addresses(netlog: &str) -> Vec<String> {
    let log: Value = serde_json::from_str(netlog).expect("the log is JSON");
    let events = log["events"].as_array().expect("events");
    let asked = events.iter().filter_map(|e| {
        let of_a_page = e["params"]["initiator"].as_str().is_some_and(|i| i != "not an origin");
        e["params"]["url"].as_str().filter(|_| of_a_page).map(str::to_owned)
    });
    asked.filter(|url| !url.starts_with("file:") && !url.starts_with("data:")).collect()
}

/// Added to a copy of the page: reports faults of the layout.
const LOOK: &str = r#"<script>
addEventListener("load", () => {
  const wrong = [], root = document.documentElement;
  if (root.scrollWidth > innerWidth) wrong.push(`the page is ${root.scrollWidth} wide of ${innerWidth}`);
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect(), title = svg.getAttribute("aria-label");
    const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim())
      .map(t => [t.textContent, t.getBoundingClientRect()]);
    for (const [name, r] of texts) {
      if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1)
        wrong.push(`${title}: '${name}' is cut off`);
      if (r.height < 8) wrong.push(`${title}: '${name}' is ${r.height} high`);
    }
    texts.forEach(([a, r], i) => texts.slice(i + 1).forEach(([b, s]) => {
      const x = Math.min(r.right, s.right) - Math.max(r.left, s.left);
      const y = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
      if (x > 1 && y > 4) wrong.push(`${title}: '${a}' lies on '${b}'`);
    }));
  }
  root.dataset.wrong = JSON.stringify(wrong);
  root.dataset.background = getComputedStyle(document.body).backgroundColor;
});
</script>"#;

fn report() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser");
    let _ = std::fs::remove_dir_all(&dir);
    let sets =
        ["victims=3", "stuff=60", "hoard=20", "hog-hard=4MiB", "victim-hard=2MiB", "rate=100Mbit"];
    let more = ["hog-rate=1Gbit", "probe-rate=2000", "response=128", "solo=1s", "contended=1s"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.arg("repro").arg("--out").arg(&dir);
    for set in sets.iter().chain(&more) {
        command.args(["--set", set]);
    }
    let out = command.output().expect("loadgen starts");
    assert!(out.status.code().is_some_and(|c| c != 1 && c != 2), "{out:?}");
    dir.join("report.html")
}

#[test]
#[ignore = "needs Chromium; `.ci/run report-in-a-browser` runs it"]
fn the_report_in_a_browser() {
    let page = report();
    let html = std::fs::read_to_string(&page).expect("the report");
    let (dom, console, asked) = visit(&page, 1280, false);
    assert!(dom.matches("<svg").count() >= 7, "charts are drawn");
    assert!(!dom.contains("<script"), "no script");
    assert!(!console.contains("CONSOLE"), "{console}");
    assert_eq!(asked, Vec::<String>::new());

    let looked = page.with_file_name("looked.html");
    std::fs::write(&looked, html.replace("</main>", &format!("</main>{LOOK}"))).expect("a copy");
    let attribute = |dom: &str, name: &str| {
        let from = dom.split_once(&format!("data-{name}=\"")).expect("the page was looked at").1;
        from.split('"').next().unwrap_or_default().replace("&quot;", "'")
    };
    let mut backgrounds = Vec::new();
    for (width, dark) in [(1280, false), (390, false), (1280, true), (820, false)] {
        let (dom, console, _) = visit(&looked, width, dark);
        assert_eq!(attribute(&dom, "wrong"), "[]", "at {width}");
        assert!(!console.contains("CONSOLE"), "{console}");
        backgrounds.push(attribute(&dom, "background"));
    }
    assert_eq!(backgrounds[0], backgrounds[1]);
    assert_ne!(backgrounds[0], backgrounds[2], "dark is another page");
}

/// The check itself detects its targets: a request, and overlapping texts.
#[test]
#[ignore = "needs Chromium; `.ci/run report-in-a-browser` runs it"]
fn a_broken_page_in_a_browser_is_detected() {
    let page = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bad.html");
    let svg = "<svg viewBox='0 0 100 50' width='400' aria-label='c'><text x='5' y='20'>one</text>\
               <text x='8' y='22'>two</text><text x='90' y='40'>far too long</text></svg>";
    let head = "<script src='http://192.0.2.1/x.js'></script><script>nothing()</script>";
    std::fs::write(&page, format!("<html><body>{svg}{head}{LOOK}</body></html>")).expect("written");
    let (dom, console, asked) = visit(&page, 1280, false);
    assert_eq!(asked.first().map(String::as_str), Some("http://192.0.2.1/x.js"));
    assert!(console.contains("nothing is not defined"), "{console}");
    assert!(dom.contains("'one' lies on 'two'") && dom.contains("cut off"), "{dom}");
}
