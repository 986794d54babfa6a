//! Numbers and texts where there is little room. What is cut is marked.

/// Marks what was cut.
const CUT: char = '…';

/// A number in six characters at most, up to a million of millions: exact below ten thousand, of larger ones the first three
/// digits, rounded down.
pub(super) fn short(number: u64) -> String {
    if number < 10_000 {
        return number.to_string();
    }
    let (mut unit, mut letters) = (1000_u64, "kMGTPE".chars());
    let mut letter = letters.next();
    while number / unit >= 1000 {
        (unit, letter) = (unit * 1000, letters.next());
    }
    let (whole, rest) = (number / unit, number % unit);
    let decimals = if whole >= 100 {
        0
    } else if whole >= 10 {
        1
    } else {
        2
    };
    // Two digits behind the point.
    let hundredths = format!("{:02}", u128::from(rest) * 100 / u128::from(unit));
    let shown = hundredths[..decimals].trim_end_matches('0');
    let point = if shown.is_empty() { "" } else { "." };
    format!("{whole}{point}{shown}{}", letter.map_or_else(String::new, String::from))
}

/// A text in so many columns, cut at its end.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain((width > 0).then_some(CUT)).collect()
}

/// The same, cut in its middle: of an address, both ends tell it from others.
pub(super) fn cut_inside(text: &str, width: usize) -> String {
    let len = text.chars().count();
    if len <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let (head, tail) = (kept / 2, kept - kept / 2);
    let ends = text.chars().take(head).chain((width > 0).then_some(CUT));
    ends.chain(text.chars().skip(len - tail)).collect()
}

/// How two columns share so much room that want so much: as it is if there is enough, else neither gets less than half because
/// of the other.
pub(super) fn share(room: usize, [left, right]: [usize; 2]) -> [usize; 2] {
    if left + right <= room {
        return [left, right];
    }
    let left = left.min((room / 2).max(room.saturating_sub(right)));
    [left, room - left]
}

/// A text in lines of so many columns, broken between words; `most` lines at most.
pub(super) fn wrapped(text: &str, width: usize, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(cut(word, width)),
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            *last = cut(&format!("{last} {CUT}"), width);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_as_long_as_they_are_small_and_short_always() {
        for (number, expected) in [
            (0, "0"),
            (9999, "9999"),
            (10_000, "10k"),
            (12_399, "12.3k"),
            (100_500, "100k"),
            (999_999, "999k"),
            (1_000_000, "1M"),
            (1_250_000, "1.25M"),
            (1_005_000, "1M"),
            (20_500_000, "20.5M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(number), expected);
        }
    }

    #[test]
    fn what_is_cut_is_marked_and_fits() {
        let address = "[2001:db8:1111:2222:3333:4444:5555:6666]:443";
        assert_eq!(cut_inside(address, 21), "[2001:db8:…:6666]:443");
        assert_eq!(cut("syn-flood", 4), "syn…");
        for width in 0..50 {
            for cut in [cut(address, width), cut_inside(address, width)] {
                assert!(cut.chars().count() <= width, "{cut}");
                assert_eq!(cut.contains(CUT), width > 0 && width < address.len(), "{cut}");
            }
        }
    }

    #[test]
    fn two_columns_share_what_there_is() {
        assert_eq!(share(50, [20, 20]), [20, 20]);
        assert_eq!(share(50, [47, 12]), [38, 12]);
        assert_eq!(share(50, [12, 47]), [12, 38]);
        assert_eq!(share(50, [47, 47]), [25, 25]);
        assert_eq!(share(0, [47, 47]), [0, 0]);
    }

    #[test]
    fn lines_are_broken_between_words_and_those_left_out_are_marked() {
        assert_eq!(wrapped("one two three", 7, 9), ["one two", "three"]);
        assert_eq!(wrapped("one two three", 7, 1), ["one tw…"]);
        assert_eq!(wrapped("onetwothree", 7, 9), ["onetwo…"]);
        assert_eq!(wrapped("one", 0, 0), [""; 0]);
    }
}
