//! The configuration file: what it sets, and what is refused.

use std::fs;

use crate::support::{Netns, Running, serve, text, unique};

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn containers_templates_and_the_hosts_limit_of_a_config() {
    let (web, db, cache) = (Netns::new(), Netns::new(), Netns::new());
    let file = std::env::temp_dir().join(unique("config-"));
    let path = file.to_str().unwrap().to_owned();
    let config = format!(
        "[daemon]\nworkers = 1\n[host]\nhard = '64MiB'\n\
         [[template]]\nmatch = 'web-*'\nhard = '8MiB'\nmin = '4MiB'\n\
         [[container]]\nname = 'web-1'\nnetns = '{}'\n\
         [[container]]\nname = 'late'\nnetns = '/run/netns/not-yet'\n",
        web.path()
    );
    fs::write(&file, config).unwrap();
    let checked = serve(&["--config", &path, "--check"]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).contains("2 containers, 1 templates"), "{checked:?}");

    let daemon = Running::start(&["--config", &path]);
    // The container that does not exist yet is reported, and the daemon runs.
    assert_eq!(daemon.names(), ["web-1"]);
    let stats = daemon.stats("web-1");
    assert_eq!((&stats["hard_bytes"], &stats["min_bytes"]), (&(8 << 20).into(), &(4 << 20).into()));
    // Options that a client gives come before those of the template.
    daemon.run(&["attach", "web-2", "--netns", &db.path(), "--hard", "16MiB"]);
    let stats = daemon.stats("web-2");
    assert_eq!(
        (&stats["hard_bytes"], &stats["min_bytes"]),
        (&(16 << 20).into(), &(4 << 20).into())
    );
    // All guarantees must fit the host's limit, at attach and later.
    let path_of_cache = cache.path();
    let large = ["attach", "cache", "--netns", &path_of_cache, "--min", "62MiB"];
    assert!(daemon.refuses(&large, 1).contains("min 62MiB does not fit"));
    assert_eq!(cache.devices(), ["lo"]);
    let message = daemon.refuses(&["set", "web-1", "hard=63MiB", "min=62MiB"], 1);
    assert!(message.contains("min 62MiB does not fit"), "{message}");
    assert_eq!(daemon.stats("web-1")["hard_bytes"], 8 << 20);
    daemon.run(&["set", "web-1", "hard=32MiB", "min=24MiB"]);
    assert_eq!(daemon.stats("web-1")["min_bytes"], 24 << 20);
    daemon.end();

    fs::write(&file, "[host]\nhrad = 1\n").unwrap();
    for options in [&["--config", &path, "--check"][..], &["--config", &path]] {
        let refused = serve(options);
        assert_eq!(refused.status.code(), Some(2));
        let expected = format!("{path}:2: [host] hrad: unknown key; did you mean hard?");
        assert!(text(&refused.stderr).contains(&expected), "{}", text(&refused.stderr));
    }
    fs::remove_file(&file).unwrap();
}
