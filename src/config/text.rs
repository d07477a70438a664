//! Small text formats of configuration values. All are strict: `None` is "not that".

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::{self, FromStr};

/// An IPv4 address that a single host can have.
pub(super) fn host4(value: &[u8]) -> Option<Ipv4Addr> {
    parse::<Ipv4Addr>(value).filter(|address| matches!(address.octets(), [1..=126 | 128..=223, ..]))
}

/// An IPv6 address that a single host can have.
pub(super) fn host6(value: &[u8]) -> Option<Ipv6Addr> {
    parse(value).filter(|address: &Ipv6Addr| {
        !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
    })
}

/// [`host4`] or [`host6`].
pub(super) fn host(value: &[u8]) -> Option<IpAddr> {
    host4(value).map(IpAddr::V4).or_else(|| host6(value).map(IpAddr::V6))
}

/// A contiguous dotted mask or (feature `net.fake-netmask`) a prefix length, to a prefix length.
pub(super) fn netmask(value: &[u8]) -> Option<u8> {
    if let Some(mask) = parse::<Ipv4Addr>(value) {
        let bits = mask.to_bits();
        let length = bits.leading_ones();
        let contiguous = bits.count_ones() == length;
        return u8::try_from(length).ok().filter(|_| contiguous);
    }
    let digits_only = value.iter().all(u8::is_ascii_digit);
    parse(value).filter(|length: &u8| digits_only && *length <= 32)
}

fn parse<T: FromStr>(value: &[u8]) -> Option<T> {
    str::from_utf8(value).ok()?.parse().ok()
}

/// Base64 with padding and without line breaks (RFC 4648 section 4), canonical: the bits that the
/// padding leaves over are zero.
pub(super) fn base64(value: &[u8]) -> Option<Vec<u8>> {
    let (quads, []) = value.as_chunks::<4>() else { return None };
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(quads.len().checked_mul(3)?).ok()?;
    for (index, quad) in quads.iter().enumerate() {
        let is_last = index.checked_add(1)? == quads.len();
        let (digits, length) = match quad {
            [a, b, b'=', b'='] if is_last => ([*a, *b, b'A', b'A'], 1),
            [a, b, c, b'='] if is_last => ([*a, *b, *c, b'A'], 2),
            quad => (*quad, 3),
        };
        let mut bits = 0_u32;
        for digit in digits {
            bits = bits << 6 | u32::from(base64_digit(digit)?);
        }
        let [_, decoded @ ..] = bits.to_be_bytes();
        let (kept, rest) = decoded.split_at_checked(length)?;
        if rest.iter().any(|&byte| byte != 0) {
            return None;
        }
        bytes.extend_from_slice(kept);
    }
    Some(bytes)
}

fn base64_digit(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
            ("aGVsbG8gd29ybGQ=", "hello world"),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64(b"+/+/").as_deref(), Some(&[0xfb, 0xff, 0xbf][..]));
    }

    #[test]
    fn base64_that_is_damaged() {
        for text in [
            "Z", "Zg", "Zg=", "Zg===", "Zh==", "Zm9=", "====", "Z===", "Zg==Zg==", "Zm9-", "Zm 9",
            "Zm9v\n",
        ] {
            assert_eq!(base64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn netmasks() {
        for (text, length) in
            [("255.255.255.255", 32), ("255.255.255.0", 24), ("0.0.0.0", 0), ("24", 24), ("0", 0)]
        {
            assert_eq!(netmask(text.as_bytes()), Some(length), "{text}");
        }
        for text in ["255.0.255.0", "0.0.0.255", "33", "+8", "-1", "", "255.255.255", "24 "] {
            assert_eq!(netmask(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn host_addresses() {
        for text in ["10.137.0.6", "1.0.0.1", "223.255.255.255", "198.51.100.7"] {
            assert!(host4(text.as_bytes()).is_some(), "{text}");
        }
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "10.1",
            "010.0.0.1",
            " 1.2.3.4",
            "::1",
        ] {
            assert_eq!(host4(text.as_bytes()), None, "{text}");
        }
        for text in ["fd09:24ef:4179::a89:6", "fe80::1", "2001:db8::"] {
            assert!(host6(text.as_bytes()).is_some(), "{text}");
        }
        for text in ["::", "::1", "ff02::1", "fd09::/64", "10.0.0.1", "\u{fc}::1"] {
            assert_eq!(host6(text.as_bytes()), None, "{text}");
        }
    }
}
