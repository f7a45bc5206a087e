use super::*;

fn parse(text: &str) -> Result<ServeConfig, Failure> {
    ServeConfig::parse("file.toml", text)
}

#[test]
fn the_example_is_valid_and_uses_every_table() {
    let text = include_str!("../../../dist/skbudget.toml");
    let config = parse(text).unwrap();
    assert!(config.workers.is_some() && config.socket.is_some() && config.host.is_some());
    assert!(!config.templates.is_empty() && !config.containers.is_empty());
    assert!(!config.groups.is_empty());
    // Every option is shown, in force or as a comment.
    for key in OPTION_KEYS.iter().chain(&ATTACH_KEYS).filter(|key| **key != "pid") {
        let shown =
            |line: &str| line.trim_start_matches(['#', ' ']).starts_with(&format!("{key} = "));
        assert!(text.lines().any(shown), "{key}");
    }
    // What is a comment there is valid, too.
    let uncomment = |line: &str| match line.strip_prefix("#") {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    let all: Vec<String> = text.lines().map(uncomment).collect();
    parse(&all.join("\n")).unwrap();
}

#[test]
fn an_error_names_file_line_key_and_what_is_allowed() {
    let container = "[[container]]\nname = 'a'\nnetns = '/run/netns/a'\n";
    for (text, expected) in [
        ("[hots]\nhard = 1", "file.toml:1: hots: unknown key; did you mean host? allowed: daemon"),
        ("[host]\n\nhrad = '1GiB'", "file.toml:3: [host] hrad: unknown key; did you mean hard?"),
        ("[host]\nhard = '1 bananas'", "file.toml:2: [host] hard: unknown unit"),
        ("[host]\nsoft = 1", "file.toml:2: [host] soft: needs hard"),
        ("[host]\nhard = '1GiB'\nsoft = '2GiB'", "file.toml:3: [host] soft: low"),
        ("[daemon]\nworkers = 0", "file.toml:2: [daemon] workers: 1 to 1024 are allowed"),
        ("[daemon]\nsocket = 'x.sock'", "file.toml:2: [daemon] socket: an absolute path"),
        ("[daemon]\nsubnet = '10.0.0.1/8'", "file.toml:2: [daemon] subnet 10.0.0.1/8: has bits"),
        ("[daemon]\nisolation = 'x'", "file.toml:2: [daemon] isolation \"x\": group or none"),
        ("[daemon]\nsubnet6 = 'x'", "file.toml:2: [daemon] subnet6 \"x\": a network is needed"),
        (
            &format!("{container}address = '10.0.2.100'"),
            "file.toml:4: [container] address 10.0.2.100: not one of",
        ),
        ("daemon = 1", "file.toml:1: daemon: must be a table"),
        ("[container]\nname = 'a'", "file.toml:1: container: must be an array of tables"),
        ("[[container]]\n[[container]]\nname = 'a'", "file.toml:1: [container] name: missing"),
        ("[[container]]\nname = 'a/b'", "file.toml:2: [container] name: 1 to 64"),
        ("[[container]]\nname = 'a'", "file.toml:1: [container] netns: missing"),
        ("[[container]]\nname = 'a'\npid = 1", "file.toml:3: [container] pid: unknown key"),
        (&format!("{container}{container}"), "file.toml:5: [container] name: a container"),
        (&format!("{container}hard = '1KiB'"), "file.toml:4: [container] hard 1KiB is too small"),
        (&format!("{container}min = '1MiB'"), "file.toml:4: [container] min acts only below"),
        (&format!("{container}mtu = 9"), "file.toml:4: [container] mtu 9 is not in 68..=65521"),
        (&format!("{container}publish = ['80']"), "file.toml:4: [container] publish: [ADDR:]"),
        (&format!("{container}ifname = 'a/b'"), "file.toml:4: [container] ifname"),
        ("[[group]]\nname = 'a'", "file.toml:1: [group] hard: missing"),
        ("[[group]]\nname = 'host'\nhard = 1", "file.toml:2: [group] name: \"host\" is in use"),
        ("[[group]]\nname = 'a'\nparent = 'b'", "file.toml:3: [group] parent \"b\": must be"),
        ("[[group]]\nname = 'a'\nhard = '1MiB'\nweight = 0", "file.toml:4: [group] weight 0 is"),
        (&format!("{container}group = 'a'"), "file.toml:4: [container] group \"a\": no such group"),
        ("[[template]]\nmatch = 'a*b'", "file.toml:2: [template] match: a name"),
        ("[[template]]\nhard = '1MiB'", "file.toml:1: [template] match: missing"),
        ("[host]\nhard = = 1", "file.toml:2: "),
        ("[host]\nhard = 1\nhard = 2", "file.toml:3: duplicate key"),
    ] {
        let failure = parse(text).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(failure.message.starts_with(expected), "{text:?}: {failure}");
    }
}

#[test]
fn groups_nest_three_levels_with_the_host_included() {
    let group = |name: &str, parent: &str| {
        let parent =
            if parent.is_empty() { String::new() } else { format!("parent = '{parent}'\n") };
        format!("[[group]]\nname = '{name}'\n{parent}hard = '1MiB'\n")
    };
    let three = group("a", "") + &group("b", "a") + &group("c", "b");
    let config = parse(&three).unwrap();
    assert_eq!(config.groups.len(), 3);
    assert_eq!(config.groups[2].parent.as_deref(), Some("b"));
    let failure = parse(&format!("[host]\nhard = '1GiB'\n{three}")).unwrap_err();
    assert!(failure.message.starts_with("file.toml:12: [group] parent: at most 3"), "{failure}");
    // A guarantee acts below a group, too.
    let min = "[[template]]\nmatch = '*'\nmin = '1MiB'\n";
    assert!(parse(&format!("{three}{min}group = 'c'")).is_ok());
    assert!(parse(&format!("{three}{min}")).is_err());
}

#[test]
fn the_first_template_that_matches_fills_what_is_not_given() {
    let config = parse(
        "[[template]]\nmatch = 'web-*'\nhard = '64MiB'\nmtu = 1500\n\
         [[template]]\nmatch = '*'\nhard = '16MiB'",
    )
    .unwrap();
    let given = ContainerOptions { mtu: Some(9000), ..ContainerOptions::default() };
    let filled = |name: &str, options| {
        let name = Some(name.to_owned());
        config.filled(AttachRequest { name, options, ..AttachRequest::default() }).options
    };
    let web = filled("web-1", given);
    assert_eq!((web.hard, web.mtu), (Some(Bytes(64 << 20)), Some(9000)));
    let other = filled("db", ContainerOptions::default());
    assert_eq!((other.hard, other.mtu), (Some(Bytes(16 << 20)), None));
}
