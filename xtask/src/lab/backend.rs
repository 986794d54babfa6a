//! A real web server for the guard to protect: Debian's nginx, with files to download and a place to upload to.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Namespace, Process};

/// A running nginx.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    root: PathBuf,
    process: Process,
    namespace: Namespace,
    config: PathBuf,
}

impl Backend {
    /// Starts nginx in `namespace` on `address`, with everything it needs under `dir`. It serves the files under
    /// [`Self::root`], accepts `PUT /upload/…` of any size, and keeps connections alive without limit.
    pub fn start(namespace: &Namespace, address: SocketAddr, dir: &Path) -> Result<Self> {
        let dir = dir.join("nginx");
        let root = dir.join("www");
        fs::create_dir_all(root.join("upload"))?;
        let config = dir.join("nginx.conf");
        fs::write(&config, configuration(address, &dir))?;
        let mut command = namespace.command("nginx");
        command.args(arguments(&config)).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command)?;
        wait_for(&mut process, namespace, address)?;
        Ok(Self { address, root, process, namespace: namespace.alias(), config })
    }

    /// Leaves it running when this value, and this process, go.
    pub fn leave(self) -> Result<()> {
        // Its death was tied to ours when it started: start it again, untied.
        let Self { address, process, namespace, config, .. } = self;
        drop(process);
        let mut command = namespace.detached("nginx");
        command.args(arguments(&config)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::spawn(&mut command)?;
        wait_for(&mut process, &namespace, address)?;
        process.leave();
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The directory it serves; uploads land in `upload/` under it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Puts a file of `len` bytes, different in every block, at `/name`.
    pub fn file(&self, name: &str, len: usize) -> Result<PathBuf> {
        let path = self.root.join(name);
        write_pattern(&path, len).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Writes `len` bytes that repeat only after 2⁶⁴ words, so that a lost, doubled or swapped block shows.
pub fn write_pattern(path: &Path, len: usize) -> Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 16, File::create(path)?);
    let words =
        (0..len.div_ceil(8) as u64).map(|word| tcpguard_common::lab::mix(word ^ len as u64).to_ne_bytes());
    let mut left = len;
    for word in words {
        let part = left.min(8);
        out.write_all(&word[..part])?;
        left -= part;
    }
    Ok(out.flush()?)
}

fn arguments(config: &Path) -> [OsString; 6] {
    let dir = config.parent().unwrap_or(Path::new("/"));
    let log = dir.join("error.log");
    ["-e".into(), log.into(), "-p".into(), dir.into(), "-c".into(), config.into()]
}

fn wait_for(process: &mut Process, namespace: &Namespace, address: SocketAddr) -> Result<()> {
    let reachable = || namespace.enter(|| TcpStream::connect(address).is_ok()).unwrap_or(false);
    process.wait_until(Duration::from_secs(10), reachable).context("nginx does not answer")
}

/// One process without a master: it dies when we kill it, without orphans.
fn configuration(address: SocketAddr, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
master_process off;
user root;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; multi_accept on; }}
http {{
  access_log off;
  sendfile on;
  tcp_nodelay on;
  default_type application/octet-stream;
  keepalive_requests 100000000;
  keepalive_timeout 600s;
  client_max_body_size 0;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  server {{
    listen {address} backlog=16384 reuseport;
    root {dir}/www;
    location /upload/ {{ dav_methods PUT DELETE; create_full_put_path on; }}
  }}
}}
"
    )
}
