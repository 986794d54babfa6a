//! The state diagram of RFC 9293 §3.3.2 as a guarded service sees it, with room for live counts: flows in each state, and
//! how often a second the edges are gone that anything is counted of. It draws text and knows no terminal.

/// `<name>` stands for a number, left-aligned over as many columns as it and its brackets take.
const DIAGRAM: &str = "                               LISTEN
        SYN: cookie            |    |            SYN: remembered
        <cookies........>  +---+    +---+        <remembered.....>
        ACK: valid         |            |
        <adopted........>  |            v
                           |      SYN_RCVD <SYN_RCVD..>
                           |            |        ACK: <completed...>
                           v            v
                       ESTABLISHED <ESTABLISHED>
         close: <closed..> |            |        FIN: <closed-by-peer>
                 +---------+            +---------+
                 v                                v
       FIN_WAIT_1 <FIN_WAIT_1>          CLOSE_WAIT <CLOSE_WAIT>
          | ACK         | FIN                     | close
          v <fin-acked> v <both........>          v <answered......>
FIN_WAIT_2 <FIN_WAIT_2> CLOSING <CLOSING..> LAST_ACK <LAST_ACK..>
          | FIN         | ACK                     | ACK
          +------+------+                         | <finished......>
                 v <entered.........>             v
        TIME_WAIT <TIME_WAIT.> 2MSL <expired.> -> CLOSED
        SYN_SENT <SYN_SENT.>     RST: <resets.........>";

/// The diagram's lines, with what `number` says for each name in it.
pub(super) fn lines(number: impl Fn(&str) -> String) -> Vec<String> {
    DIAGRAM.lines().map(|line| fill(line, &number)).collect()
}

fn fill(line: &str, number: &impl Fn(&str) -> String) -> String {
    let (mut filled, mut rest) = (String::new(), line);
    while let Some((before, from)) = rest.split_once('<') {
        let Some((name, after)) = from.split_once('>') else { break };
        let width = name.len() + 2;
        filled += before;
        filled += &format!("{:<width$}", number(name.trim_end_matches('.')));
        rest = after;
    }
    (filled + rest).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::State;

    #[test]
    fn every_state_is_there_once_with_its_count_and_it_fits() {
        let lines = lines(|name| match State::ALL.iter().position(|state| state.name() == name) {
            Some(place) => format!("#{place}#"),
            None => format!("{name}/s"),
        });
        // It used to stand at the left edge.
        assert_eq!(lines[0].find("LISTEN"), lines[1].find("|    |"), "{lines:#?}");
        assert!(lines.len() <= 21 && lines.iter().all(|line| line.len() <= 78), "{lines:#?}");
        let text = lines.join("\n");
        // CLOSED is no flow's.
        for (place, state) in State::ALL.iter().enumerate().filter(|(_, state)| **state != State::Closed) {
            assert_eq!(
                text.matches(&format!("{} #{place}#", state.name())).count(),
                1,
                "{}\n{text}",
                state.name()
            );
        }
        for edge in [
            "cookies/s",
            "remembered/s",
            "adopted/s",
            "completed/s",
            "close: closed/s",
            "FIN: closed-by-peer/s",
            "fin-acked/s",
            "both/s",
            "answered/s",
            "finished/s",
            "entered/s",
            "2MSL expired/s",
            "RST: resets/s",
        ] {
            assert!(text.contains(edge), "{edge}\n{text}");
        }
        assert!(text.contains("-> CLOSED"), "{text}");
    }
}
