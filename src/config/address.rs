//! `host:port` in the file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::AddrFault;

/// Longest name of a host in bytes.
const HOST_LEN_MAX: usize = 253;

/// Host and port of an address. Two spellings of one address are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: Host,
    pub(super) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// IPv4 if possible.
    Ip(IpAddr),
    /// In lower case.
    Name(String),
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Address, AddrFault> {
        let (host, port) = text.rsplit_once(':').ok_or(AddrFault::NoPort)?;
        let host = Host::parse(host)?;
        // `parse` alone would take "+80".
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(AddrFault::NoPort);
        }
        let port = port.parse().map_err(|_| AddrFault::PortTooHigh)?;
        Ok(Address { host, port })
    }

    /// Whether it is a wildcard for every address of a machine, so that no other machine can connect to it.
    pub(super) fn is_wildcard(&self) -> bool {
        matches!(&self.host, Host::Ip(ip) if ip.is_unspecified())
    }

    /// Whether only its own machine can reach it.
    pub(super) fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Ip(ip) => ip.is_loopback(),
            Host::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        }
    }
}

impl Host {
    fn parse(text: &str) -> Result<Host, AddrFault> {
        let ip = if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(AddrFault::Host)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| AddrFault::Host)?;
            ip.to_canonical()
        } else if text.contains(':') {
            return Err(AddrFault::Brackets);
        } else if text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
        {
            let ip: Ipv4Addr = text.parse().map_err(|_| AddrFault::Host)?;
            ip.into()
        } else {
            let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if text.len() > HOST_LEN_MAX || !text.bytes().all(is_allowed) {
                return Err(AddrFault::Host);
            }
            return Ok(Host::Name(text.to_ascii_lowercase()));
        };
        let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if ip.is_multicast() || is_broadcast {
            return Err(AddrFault::ManyMachines);
        }
        Ok(Host::Ip(ip))
    }
}
