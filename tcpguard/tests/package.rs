//! The Debian package: made, installed in a throw-away root, upgraded, removed and purged. Needs root, as dpkg does.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use xtask::deb::package;
use xtask::tool;

const DAEMON: &str = env!("CARGO_BIN_EXE_tcpguard");
const UNIT: &str = "usr/lib/systemd/system/tcpguard.service";
const CONFIG: &str = "etc/tcpguard/tcpguard.toml";

/// A root file system with nothing in it but dpkg's own database.
struct Root(PathBuf);

impl Root {
    fn new(dir: &Path) -> Self {
        let root = dir.join("root");
        for database in ["info", "updates", "triggers"] {
            fs::create_dir_all(root.join("var/lib/dpkg").join(database)).expect("directories");
        }
        fs::write(root.join("var/lib/dpkg/status"), "").expect("an empty database");
        Self(root)
    }

    /// Runs dpkg on it. Nothing that the package depends on is in it; its scripts run with this root's name, where no
    /// systemd is to be seen whose units they could disturb.
    fn dpkg(&self, arguments: &[&OsStr]) {
        let mut dpkg = Command::new("unshare");
        dpkg.args(["--mount", "sh", "-c", "mount -t tmpfs none /run && exec dpkg \"$@\"", "dpkg"]);
        dpkg.arg(format!("--root={}", self.0.display()))
            .args(["--force-depends", "--force-script-chrootless"]);
        success(&dpkg.args(arguments).output().expect("running dpkg"));
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// The names in a directory, in order.
    fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(dir)).unwrap_or_else(|error| panic!("{dir}: {error}"));
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }
}

/// What a program that succeeds says.
fn success(output: &Output) -> String {
    let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(output.status.success(), "{}: {}", output.status, said.concat());
    said.concat()
}

fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    success(&Command::new(program).args(arguments).output().expect("running a program"))
}

/// The manual's pages that the daemon writes, as a package has them.
fn pages(dir: &Path) -> Vec<String> {
    let dir = dir.join("pages");
    tool::fresh_dir(&dir).expect("a directory");
    run(DAEMON, &["man", "--directory", &dir.display().to_string()]);
    let names = fs::read_dir(dir).expect("pages").map(|page| page.expect("a page").file_name());
    let mut names: Vec<_> = names.map(|name| format!("{}.gz", name.display())).collect();
    names.sort();
    names
}

#[test]
fn the_debian_package_installs_everything_keeps_what_was_configured_and_leaves_nothing() {
    let dir = std::env::temp_dir().join(format!("tcpguard-package-{}", std::process::id()));
    let package = package(Path::new(DAEMON), &dir, &["--no-strip", "--fast"]).expect("a package");
    let shown = package.display().to_string();
    let field = |name: &str| run("dpkg-deb", &["--field", &shown, name]).trim().to_owned();
    assert_eq!(field("Package"), "tcpguard");
    assert_eq!(field("Version"), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    assert!(field("Depends").contains("libc6"), "{}", field("Depends"));

    let root = Root::new(&dir);
    let install = || root.dpkg(&["--force-confold".as_ref(), "--install".as_ref(), package.as_os_str()]);
    install();
    let status = root.read("var/lib/dpkg/status");
    assert!(status.contains("Status: install ok installed"), "{status}");
    assert!(status.contains(&format!("Conffiles:\n /{CONFIG} ")), "{status}");
    assert_eq!(root.read(UNIT), include_str!("../dist/tcpguard.service"));
    assert_eq!(root.names("usr/share/man/man1"), pages(&dir));
    let page =
        run("gzip", &["-dc", &root.path("usr/share/man/man1/tcpguard-run.1.gz").display().to_string()]);
    assert!(page.contains(".TH"), "{page}");
    for completions in [
        "usr/share/bash-completion/completions/tcpguard",
        "usr/share/zsh/vendor-completions/_tcpguard",
        "usr/share/fish/vendor_completions.d/tcpguard.fish",
    ] {
        assert!(root.read(completions).contains("dry-run"), "{completions}");
    }
    // What was installed is what the unit starts, and takes what was installed for it.
    let daemon = root.path("usr/bin/tcpguard");
    assert_eq!(run(&daemon, &["--version"]), run(DAEMON, &["--version"]));
    let good = run(&daemon, &["check", &root.path(CONFIG).display().to_string()]);
    assert!(good.contains(": good"), "{good}");
    // The interface in it is an example: nothing is enabled before somebody has named another.
    assert!(!root.path("etc/systemd/system/multi-user.target.wants/tcpguard.service").exists());

    let mine = format!("{}\n# mine\n", root.read(CONFIG));
    fs::write(root.path(CONFIG), &mine).expect("a changed configuration");
    install();
    assert_eq!(root.read(CONFIG), mine, "an upgrade took the administrator's configuration away");
    root.dpkg(&["--remove".as_ref(), "tcpguard".as_ref()]);
    assert!(!daemon.exists() && !root.path(UNIT).exists());
    assert_eq!(root.read(CONFIG), mine);
    root.dpkg(&["--purge".as_ref(), "tcpguard".as_ref()]);
    assert!(!root.path("etc/tcpguard").exists());
    let left: Vec<_> =
        root.names("var/lib/dpkg/info").into_iter().filter(|name| name.contains("tcpguard")).collect();
    assert!(left.is_empty(), "{left:?}");
    fs::remove_dir_all(dir).expect("removing what the test made");
}
