//! What fetching a source may take and touch, and connections to addresses that are allowed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::decode::MAX_PIXELS;

/// What a fetch may take before it is given up, and what it may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchLimits {
    /// Largest picture file, response body or inline picture, in bytes (64 MiB).
    pub max_bytes: u64,
    /// Wall-clock time for one whole download of a picture, redirects and body included (30 s).
    pub timeout: Duration,
    /// Redirects that are followed (5).
    pub max_redirects: u32,
    /// Largest picture or frame of a film that is decoded, in pixels; [`MAX_PIXELS`], and no more than that.
    pub max_pixels: u64,
    /// Largest video that is downloaded or inline, in bytes (4 GiB). It is not held in memory.
    pub max_video_bytes: u64,
    /// Wall-clock time for one whole download of a video (10 minutes).
    pub video_timeout: Duration,
    /// Files of this machine that a request may name (any).
    pub files: FileAccess,
    /// Servers that a request may name (any).
    pub urls: UrlAccess,
}

/// Which files of this machine requests may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FileAccess {
    /// None.
    None,
    /// Those in a directory and below it, wherever links lead.
    Under(PathBuf),
    /// All that this process can read.
    #[default]
    Any,
}

/// Which servers requests may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UrlAccess {
    /// None.
    None,
    /// Those with public addresses, redirects included: none of this machine or of a private network. Connections go
    /// to the address that was checked, and through no proxy.
    Public,
    /// All that this machine can reach.
    #[default]
    Any,
}

impl Default for FetchLimits {
    fn default() -> Self {
        FetchLimits {
            max_bytes: 64 << 20,
            timeout: Duration::from_secs(30),
            max_redirects: 5,
            max_pixels: MAX_PIXELS,
            max_video_bytes: 4 << 30,
            video_timeout: Duration::from_secs(600),
            files: FileAccess::Any,
            urls: UrlAccess::Any,
        }
    }
}

/// A client within the limits, with so long for a whole download.
pub(super) fn config(
    limits: &FetchLimits,
    timeout: Duration,
) -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .max_redirects(limits.max_redirects)
        .user_agent(concat!("qwenvl/", env!("CARGO_PKG_VERSION")))
        .accept("image/*, video/*, */*;q=0.5")
}

/// One that connects to allowed addresses only. A proxy would look hosts up by itself: there is none.
pub(super) fn checked_agent(
    limits: &FetchLimits,
    timeout: Duration,
    allowed: fn(SocketAddr) -> bool,
) -> ureq::Agent {
    let resolver = Checked { resolver: DefaultResolver::default(), allowed };
    ureq::Agent::with_parts(
        config(limits, timeout).proxy(None).build(),
        DefaultConnector::default(),
        resolver,
    )
}

/// Looks hosts up, those of redirects too, and refuses one if not all of its addresses are allowed.
#[derive(Debug)]
struct Checked {
    resolver: DefaultResolver,
    allowed: fn(SocketAddr) -> bool,
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.resolver.resolve(uri, config, timeout)?;
        let all = found.iter().all(|address| (self.allowed)(*address));
        if all { Ok(found) } else { Err(ureq::Error::Other(Box::new(Forbidden))) }
    }
}

/// Why [`Checked`] refuses a host.
#[derive(Debug, thiserror::Error)]
#[error("the address is not allowed")]
pub(super) struct Forbidden;

/// Whether an address is one of the internet at large, by the registries of special addresses of RFC 6890.
pub(super) fn is_public(address: IpAddr) -> bool {
    let v4 = |a: Ipv4Addr| {
        let [a0, a1, a2, _] = a.octets();
        let special = a0 == 0
            || a0 >= 240
            || (a0 == 100 && a1 & 0xC0 == 64)
            || (a0 == 198 && a1 & 0xFE == 18)
            || (a0, a1, a2) == (192, 0, 0)
            || (a0, a1, a2) == (192, 88, 99);
        !(special
            || a.is_private()
            || a.is_loopback()
            || a.is_link_local()
            || a.is_documentation()
            || a.is_multicast())
    };
    let v6 = |a: Ipv6Addr| {
        let [s0, s1, ..] = a.segments();
        // Global unicast is 2000::/3. Within it: protocols and tunnels, documentation, 6to4.
        let special = (s0 == 0x2001 && (s1 < 0x200 || s1 == 0xDB8)) || s0 == 0x2002 || s0 == 0x3FFF;
        s0 & 0xE000 == 0x2000 && !special
    };
    match address.to_canonical() {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;

    #[test]
    fn addresses_of_this_machine_and_of_private_networks_are_not_public() {
        for address in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn the_address_of_a_redirect_is_checked_too() {
        static ALLOWED: AtomicU16 = AtomicU16::new(0);
        let inner = TcpListener::bind("127.0.0.1:0").unwrap();
        let outer = TcpListener::bind("127.0.0.1:0").unwrap();
        let (to, from) = (inner.local_addr().unwrap(), outer.local_addr().unwrap());
        ALLOWED.store(from.port(), Ordering::Relaxed);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = outer.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 302 Found\r\nLocation: http://{to}/\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
        });
        let limits = FetchLimits { timeout: Duration::from_secs(5), ..FetchLimits::default() };
        let allowed = |address: SocketAddr| address.port() == ALLOWED.load(Ordering::Relaxed);
        let agent = checked_agent(&limits, limits.timeout, allowed);
        let error = agent.get(format!("http://{from}/")).call().unwrap_err();
        assert!(matches!(&error, ureq::Error::Other(e) if e.is::<Forbidden>()), "{error}");
        server.join().unwrap();
        inner.set_nonblocking(true).unwrap();
        assert!(inner.accept().is_err(), "nobody has asked there");
    }
}
