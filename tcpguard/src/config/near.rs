//! What somebody may have meant who wrote a name that there is none of.

/// `, did you mean NAME?`, when one letter or two would make it one of `known`; nothing otherwise.
pub(crate) fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|known| (distance(name, known), known)).min();
    match near {
        Some((distance, near)) if distance <= 2 => format!(", did you mean `{near}`?"),
        _ => String::new(),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = corner + usize::from(from != to);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::suggestion;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let known = ["socket", "group", "mode"];
        assert_eq!(suggestion("sokcet", known), ", did you mean `socket`?");
        assert_eq!(suggestion("mod", known), ", did you mean `mode`?");
        assert_eq!(suggestion("nonsense", known), "");
        assert_eq!(suggestion("mode", []), "");
    }
}
