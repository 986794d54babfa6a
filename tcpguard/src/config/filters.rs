//! The filter lists as people write them: prefixes to deny or allow, one a line. It reads and judges; what is in force
//! is the daemon's.
//!
//! ```text
//! # Documentation prefixes: nobody lives there.
//! 192.0.2.0/24                          # without a word, what the list is for
//! deny 2001:db8::/32
//! allow 198.51.100.7 expires 1h30m      # one address; forgotten after that time
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use tcpguard_common::filter::MAX_FILTERS;

use super::shown::brief;
use super::{ConfigError, duration};

/// A hundred thousand lines of 300 bytes: what is larger is some other file.
const MAX_TEXT: u64 = 32 << 20;
/// What lives longer may as well live for ever.
const MAX_EXPIRES: Duration = Duration::from_secs(3650 * 24 * 3600);

/// All addresses that begin with the same bits. Ordered by family, address and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// The first address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// How many bits count: at most 32, or 128.
    pub fn length(&self) -> u8 {
        self.len
    }

    /// Whether `addr` begins with its bits.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4() && masked(addr, self.len) == self.addr
    }
}

fn masked(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() & mask))
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & mask))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Reads `ADDR/LEN`, or an address alone. Bits beyond the length are refused rather than dropped: whoever wrote them
    /// meant a longer prefix, or another one.
    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
        let unreadable = || {
            format!("`{text}` is not an address or prefix, as in 192.0.2.0/24, 192.0.2.1 or 2001:db8::/32")
        };
        let addr: IpAddr = addr.parse().map_err(|_| unreadable())?;
        if let IpAddr::V6(v6) = addr
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return Err(format!("`{text}`: no packet comes from there; {v4} is an IPv4 address"));
        }
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let len = match len {
            None => bits,
            Some(len) if len.starts_with('+') => return Err(unreadable()),
            Some(len) => match len.parse() {
                Ok(len) if len <= bits => len,
                Ok(_) => return Err(format!("`{text}`: a length of at most {bits} was expected")),
                Err(_) => return Err(unreadable()),
            },
        };
        let prefix = Self { addr: masked(addr, len), len };
        if prefix.addr != addr {
            return Err(format!("`{text}` has bits beyond its length: is it {prefix}, or {addr}/{bits}?"));
        }
        Ok(prefix)
    }
}

/// What becomes of segments from a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// They are dropped.
    Deny,
    /// They are spared the budgets; a cookie they need like all others.
    Allow,
}

super::words!(Action, "action", Deny = "deny", Allow = "allow");

/// One line of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Where from.
    pub prefix: Prefix,
    /// What then.
    pub action: Action,
    /// For how long, from when it comes into force; for ever when `None`.
    pub expires: Option<Duration>,
}

impl Filter {
    /// Reads `[deny|allow] PREFIX [expires DURATION]`; without the first word it is `default`, which `None` makes an error.
    pub fn parse(text: &str, default: Option<Action>) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace().peekable();
        let said = words.peek().and_then(|word| word.parse::<Action>().ok());
        if said.is_some() {
            words.next();
        }
        let action =
            said.or(default).ok_or_else(|| format!("`{text}` begins neither with deny nor with allow"))?;
        let prefix = words.next().ok_or_else(|| format!("`{text}` names no prefix"))?.parse()?;
        let expires = match (words.next(), words.next(), words.next()) {
            (None, ..) => None,
            (Some("expires"), Some(time), None) => Some(parse_expires(time)?),
            (Some(word), ..) => {
                return Err(format!("`{word}` after {prefix}: only `expires DURATION` may follow"));
            }
        };
        Ok(Self { prefix, action, expires })
    }
}

/// Reads for how long a filter lives.
pub fn parse_expires(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err(format!("`{text}`: over before it begins")),
        time if time > MAX_EXPIRES => Err(format!("`{text}`: more than ten years; leave it out for ever")),
        time => Ok(time),
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.prefix)?;
        match self.expires {
            Some(expires) => write!(f, " expires {}", duration::format(expires)),
            None => Ok(()),
        }
    }
}

/// Filters of which no two have the same prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterSet {
    filters: BTreeMap<Prefix, Filter>,
}

impl FilterSet {
    /// Adds one. Said twice it lives as long as the longer-lived says; whether that was so.
    ///
    /// # Errors
    ///
    /// A prefix that is denied and allowed, and one more than [`MAX_FILTERS`].
    pub fn insert(&mut self, filter: Filter) -> Result<bool, String> {
        let full = self.filters.len() >= MAX_FILTERS as usize;
        match self.filters.entry(filter.prefix) {
            Entry::Vacant(_) if full => Err(too_many()),
            Entry::Vacant(entry) => {
                entry.insert(filter);
                Ok(false)
            }
            Entry::Occupied(entry) if entry.get().action != filter.action => {
                Err(contradiction(filter.prefix))
            }
            Entry::Occupied(mut entry) => {
                let held = entry.get_mut();
                held.expires = held.expires.zip(filter.expires).map(|(held, new)| held.max(new));
                Ok(true)
            }
        }
    }

    /// Adds what `path` says, where a line without a word is denied. Returns how many lines said what was said already.
    ///
    /// # Errors
    ///
    /// The first line that is wrong, with its number.
    pub fn read_file(&mut self, path: &Path) -> Result<usize, ConfigError> {
        let file = File::open(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.read(path, file)
    }

    /// As [`Self::read_file`], from anywhere; `path` is for the messages.
    ///
    /// # Errors
    ///
    /// The first line that is wrong, with its number.
    pub fn read(&mut self, path: &Path, source: impl Read) -> Result<usize, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        source.take(MAX_TEXT + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_TEXT {
            return Err(failed(std::io::Error::other(format!("larger than {MAX_TEXT} bytes"))));
        }
        let mut repeated = 0;
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.split_once('#').map_or(text, |(text, _)| text).trim();
            if text.is_empty() {
                continue;
            }
            let added = Filter::parse(text, Some(Action::Deny)).and_then(|filter| self.insert(filter));
            let at =
                |message: String| ConfigError::At { path: path.to_owned(), line, message: brief(&message) };
            repeated += usize::from(added.map_err(at)?);
        }
        Ok(repeated)
    }

    /// All of them, ordered by prefix.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Filter> {
        self.filters.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }
}

/// What is said of a prefix that two lists name.
pub fn contradiction(prefix: Prefix) -> String {
    format!("{prefix} is both denied and allowed")
}

/// What is said when a list is too long.
pub fn too_many() -> String {
    format!("more than {MAX_FILTERS} filters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<(FilterSet, usize), String> {
        let mut set = FilterSet::default();
        let repeated = set.read(Path::new("list"), text.as_bytes()).map_err(|error| error.to_string())?;
        Ok((set, repeated))
    }

    #[test]
    fn a_list_reads_as_documented() {
        let text = "# Comment\n\n192.0.2.0/24   # a network\r\n deny 2001:db8::/32\n\
                    allow 198.51.100.7 expires 1h30m\n0.0.0.0/0\n::/0 expires 500ms";
        let (set, repeated) = read(text).unwrap();
        let lines: Vec<_> = set.iter().map(ToString::to_string).collect();
        let expected = [
            "deny 0.0.0.0/0",
            "deny 192.0.2.0/24",
            "allow 198.51.100.7/32 expires 1h30m",
            "deny ::/0 expires 500ms",
            "deny 2001:db8::/32",
        ];
        assert_eq!((lines.as_slice(), repeated), (&expected.map(String::from)[..], 0));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_with_its_number() {
        for (text, line, why) in [
            ("10.0.0.0/8\n10.0.0.1/24\n", 2, "is it 10.0.0.0/24, or 10.0.0.1/32?"),
            ("2001:db8::1/64", 1, "is it 2001:db8::/64, or 2001:db8::1/128?"),
            ("\n\n10.0.0.0/33", 3, "at most 32"),
            ("::/129", 1, "at most 128"),
            ("10.0.0.0/", 1, "not an address or prefix"),
            ("10.0.0.0/+8", 1, "not an address or prefix"),
            ("10.0.0.0/-1", 1, "not an address or prefix"),
            ("10.0.0.0/256", 1, "not an address or prefix"),
            ("10.0.0/8", 1, "not an address or prefix"),
            ("10.0.0.0.0", 1, "not an address or prefix"),
            ("fe80::1%eth0", 1, "not an address or prefix"),
            ("::ffff:10.0.0.1", 1, "10.0.0.1 is an IPv4 address"),
            ("block 10.0.0.0/8", 1, "`block` is not an address"),
            ("deny", 1, "names no prefix"),
            ("10.0.0.0/8 11.0.0.0/8", 1, "only `expires DURATION`"),
            ("10.0.0.0/8 expires", 1, "only `expires DURATION`"),
            ("10.0.0.0/8 expires 1h 5m", 1, "only `expires DURATION`"),
            ("10.0.0.0/8 expires 5", 1, "a duration looks like"),
            ("10.0.0.0/8 expires 0s", 1, "over before it begins"),
            ("10.0.0.0/8 expires 11years", 1, "more than ten years"),
            ("deny 10.0.0.0/8\nallow 10.0.0.0/8", 2, "both denied and allowed"),
            ("\u{0}", 1, "not an address"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(&format!("list:{line}: ")) && error.contains(why), "{text:?}: {error}");
        }
        let mut set = FilterSet::default();
        let error = set.read(Path::new("list"), &[0xff, b'\n'][..]).unwrap_err().to_string();
        assert!(error.starts_with("list: "), "{error}");
        let error = set.read_file(Path::new("/nonexistent/list")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/list: "), "{error}");
        let error = set.read_file(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
    }

    #[test]
    fn of_a_line_without_end_the_error_has_but_the_beginning() {
        let error = read(&"x".repeat(1 << 20)).unwrap_err();
        assert!(
            error.starts_with("list:1: `xxx") && error.contains("is not an address or prefix"),
            "{error}"
        );
        assert!(error.len() < 1000, "{} bytes", error.len());
    }

    #[test]
    fn said_twice_a_filter_is_one_and_lives_as_long_as_the_longer_lived() {
        for (text, expected) in [
            ("10.0.0.0/8 expires 1h\n10.0.0.0/8 expires 2h", "deny 10.0.0.0/8 expires 2h"),
            ("10.0.0.0/8 expires 2h\ndeny 10.0.0.0/8 expires 1h", "deny 10.0.0.0/8 expires 2h"),
            ("10.0.0.0/8\n10.0.0.0/8 expires 1h", "deny 10.0.0.0/8"),
            ("10.0.0.0/8 expires 1h\n10.0.0.0/8", "deny 10.0.0.0/8"),
        ] {
            let (set, repeated) = read(text).unwrap();
            assert_eq!((set.len(), repeated), (1, 1));
            assert_eq!(set.iter().next().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn the_list_has_an_end() {
        let full: String = (0..MAX_FILTERS).map(|host| format!("{}\n", Ipv4Addr::from_bits(host))).collect();
        let (mut set, _) = read(&full).unwrap();
        assert_eq!(set.len(), MAX_FILTERS as usize);
        let again = Filter::parse("deny 0.0.0.7", None).unwrap();
        assert_eq!(set.insert(again), Ok(true));
        let error = read(&(full + "::1\n")).unwrap_err();
        assert_eq!(error, format!("list:{}: more than 100000 filters", MAX_FILTERS + 1));
    }

    proptest! {
        #[test]
        fn a_prefix_contains_exactly_the_addresses_that_begin_with_its_bits(
            number: u128, other: u128, len in 0u8..=128, near in 0u8..=128,
        ) {
            // Addresses that share some bits, because random ones share none.
            let other = if near == 0 { other } else { number ^ other.checked_shr(u32::from(near)).unwrap_or(0) };
            let addr = IpAddr::V6(Ipv6Addr::from_bits(number));
            let prefix = Prefix { addr: masked(addr, len), len };
            let same = (number ^ other).leading_zeros() >= u32::from(len);
            prop_assert_eq!(prefix.contains(IpAddr::V6(Ipv6Addr::from_bits(other))), same);
            prop_assert!(!prefix.contains(IpAddr::V4(Ipv4Addr::from_bits(0))));
            if Ipv6Addr::from_bits(number).to_ipv4_mapped().is_none() && len > 96 {
                prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
            }
            let (v4, v4_len) = (number as u32, len.min(32));
            let prefix = Prefix { addr: masked(IpAddr::V4(v4.into()), v4_len), len: v4_len };
            let same = (v4 ^ other as u32).leading_zeros() >= u32::from(v4_len);
            prop_assert_eq!(prefix.contains(IpAddr::V4((other as u32).into())), same);
            prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
        }

        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in "[0-9a-f.:/ #denyalowxpirs\n]{0,60}") {
            if let Err(error) = read(&text) {
                prop_assert!(error.starts_with("list:") && !error.contains('\n'), "{:?}", error);
            }
        }
    }
}
