//! The HTTP/1 responder, sans-IO: requests in, the same answer to each out. It speaks what RFC 9112 asks of a server that
//! reads whole requests and cares for nothing in them: keep-alive, pipelining, bodies of either framing, HTTP/1.0.

use httparse::{Request, Status};

/// Most bytes of a request's head, of its trailers, or of a chunk's first line.
const MAX_HEAD: usize = 8 << 10;
/// Most header lines of one request.
const MAX_HEADERS: usize = 64;
/// What every answer says.
const BODY: &str = "ok\n";

/// One connection of the responder.
#[derive(Debug, Default)]
pub(super) struct Http {
    reading: Reading,
    /// What cannot be judged before more of it is there.
    partial: Vec<u8>,
    /// Of the request whose body is being read.
    request: Head,
    /// Requests answered.
    pub(super) answered: u64,
    /// The connection ended with something that is no request.
    pub(super) refused: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    /// A request's head.
    #[default]
    Head,
    /// This many bytes of a body.
    Body(u64),
    /// The line before a chunk (RFC 9112 §7.1).
    ChunkSize,
    /// This many bytes of a chunk.
    Chunk(u64),
    /// The end of a chunk's last line.
    ChunkEnd,
    /// The lines after the last chunk.
    Trailers,
    /// Nothing that matters: the last answer was given.
    Over,
}

/// What an answer needs to know of its request.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    is_head: bool,
    is_1_0: bool,
    keep: bool,
}

/// Why something is no request: the status that says so.
type Refusal = &'static str;
const BAD: Refusal = "400 Bad Request";
const TOO_LARGE: Refusal = "431 Request Header Fields Too Large";

impl Http {
    /// Takes what the client sent, and puts into `out` what it is to be told. Everything is taken, always.
    pub(super) fn take(&mut self, input: &[u8], out: &mut Vec<u8>) {
        if self.partial.is_empty() {
            let taken = self.read(input, out);
            self.partial.extend_from_slice(&input[taken..]);
        } else {
            let mut bytes = std::mem::take(&mut self.partial);
            bytes.extend_from_slice(input);
            let taken = self.read(&bytes, out);
            bytes.drain(..taken);
            self.partial = if bytes.is_empty() { Vec::new() } else { bytes };
        }
    }

    /// Whether there will be no further answer.
    pub(super) fn is_over(&self) -> bool {
        self.reading == Reading::Over
    }

    /// Reads what is whole, and returns how much that was.
    fn read(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.step(rest, out) {
                Ok(Some(taken)) => at += taken,
                Ok(None) if rest.len() < MAX_HEAD => break,
                Ok(None) => self.refuse(TOO_LARGE, out),
                Err(refusal) => self.refuse(refusal, out),
            }
        }
        at
    }

    /// Reads one thing; `None` when it is not whole.
    fn step(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, Refusal> {
        match self.reading {
            Reading::Head => self.head(bytes, out),
            Reading::Body(left) => {
                let taken = skip(bytes, left);
                match left - taken as u64 {
                    0 => self.answer(out),
                    left => self.reading = Reading::Body(left),
                }
                Ok(Some(taken))
            }
            Reading::ChunkSize => {
                // The parser takes a line without a number for a zero.
                if !bytes[0].is_ascii_hexdigit() {
                    return Err(BAD);
                }
                let Status::Complete((taken, size)) = httparse::parse_chunk_size(bytes).map_err(|_| BAD)?
                else {
                    return Ok(None);
                };
                self.reading = if size == 0 { Reading::Trailers } else { Reading::Chunk(size) };
                Ok(Some(taken))
            }
            Reading::Chunk(left) => {
                let taken = skip(bytes, left);
                let left = left - taken as u64;
                self.reading = if left == 0 { Reading::ChunkEnd } else { Reading::Chunk(left) };
                Ok(Some(taken))
            }
            Reading::ChunkEnd => match bytes {
                [b'\r'] => Ok(None),
                [b'\r', b'\n', ..] => {
                    self.reading = Reading::ChunkSize;
                    Ok(Some(2))
                }
                _ => Err(BAD),
            },
            Reading::Trailers => {
                let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
                let Status::Complete((taken, _)) =
                    httparse::parse_headers(bytes, &mut headers).map_err(refusal)?
                else {
                    return Ok(None);
                };
                self.answer(out);
                Ok(Some(taken))
            }
            Reading::Over => Ok(Some(bytes.len())),
        }
    }

    fn head(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = Request::new(&mut headers);
        let Status::Complete(taken) = request.parse(bytes).map_err(refusal)? else { return Ok(None) };
        let fields = Fields::of(&request)?;
        let is_1_0 = request.version == Some(0);
        let method = request.method.unwrap_or_default();
        // To CONNECT the same answer would mean a tunnel (RFC 9110 §9.3.6).
        if method == "CONNECT" || !is_1_0 && !fields.host || is_1_0 && fields.chunked {
            return Err(BAD);
        }
        let keep = !fields.close && (!is_1_0 || fields.keep_alive);
        self.request = Head { is_head: method == "HEAD", is_1_0, keep };
        self.reading = match (fields.chunked, fields.length.unwrap_or(0)) {
            (true, _) => Reading::ChunkSize,
            (false, 0) => {
                self.answer(out);
                return Ok(Some(taken));
            }
            (false, length) => Reading::Body(length),
        };
        if fields.expects_continue && !is_1_0 {
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        Ok(Some(taken))
    }

    /// Answers the request that is whole now.
    fn answer(&mut self, out: &mut Vec<u8>) {
        let Head { is_head, is_1_0, keep } = self.request;
        let connection = match (is_1_0, keep) {
            (true, true) => "Connection: keep-alive\r\n",
            (false, true) => "",
            (_, false) => "Connection: close\r\n",
        };
        let body = if is_head { "" } else { BODY };
        let length = BODY.len();
        let answer = format_args!(
            "HTTP/1.1 200 OK\r\nServer: tcpguard\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n{connection}\r\n{body}"
        );
        append(out, answer);
        self.answered += 1;
        self.reading = if keep { Reading::Head } else { Reading::Over };
    }

    /// Where the next request begins is anybody's guess after one that cannot be read: the connection ends.
    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<u8>) {
        append(out, format_args!("HTTP/1.1 {refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        self.refused = true;
        self.reading = Reading::Over;
    }
}

/// The header fields that say where a request ends, and whether another may follow.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    host: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl Fields {
    fn of(request: &Request<'_, '_>) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in &*request.headers {
            let value = header.value.trim_ascii();
            match header.name {
                name if name.eq_ignore_ascii_case("content-length") => {
                    let length = number(value)?;
                    if fields.length.is_some_and(|before| before != length) {
                        return Err(BAD);
                    }
                    fields.length = Some(length);
                }
                // What else a body may be encoded in is nothing we could find the end of (RFC 9112 §6.1).
                name if name.eq_ignore_ascii_case("transfer-encoding") => {
                    if fields.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(BAD);
                    }
                    fields.chunked = true;
                }
                name if name.eq_ignore_ascii_case("host") => fields.host = true,
                name if name.eq_ignore_ascii_case("connection") => {
                    for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                        fields.close |= option.eq_ignore_ascii_case(b"close");
                        fields.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                name if name.eq_ignore_ascii_case("expect") => {
                    fields.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
                }
                _ => {}
            }
        }
        // Two framings in one request are how requests are smuggled (RFC 9112 §6.3).
        if fields.chunked && fields.length.is_some() { Err(BAD) } else { Ok(fields) }
    }
}

fn number(text: &[u8]) -> Result<u64, Refusal> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(BAD)
}

fn refusal(error: httparse::Error) -> Refusal {
    if error == httparse::Error::TooManyHeaders { TOO_LARGE } else { BAD }
}

/// How many of `bytes` belong to the `left` ones of a body.
fn skip(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len())
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a vector cannot fail.
    let _ = std::io::Write::write_fmt(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OK: &str =
        "HTTP/1.1 200 OK\r\nServer: tcpguard\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";
    const OK_CLOSE: &str = "HTTP/1.1 200 OK\r\nServer: tcpguard\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

    /// What a connection is told that receives `parts`, and whether it is over then.
    fn told(parts: &[&[u8]]) -> (String, bool) {
        let (mut http, mut out) = (Http::default(), Vec::new());
        for part in parts {
            http.take(part, &mut out);
        }
        (String::from_utf8(out).unwrap(), http.is_over())
    }

    fn answer(request: &str) -> (String, bool) {
        told(&[request.as_bytes()])
    }

    #[test]
    fn requests_are_answered_in_turn_and_the_connection_stays() {
        let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(answer(get), (OK.into(), false));
        assert_eq!(answer(&get.repeat(3)), (OK.repeat(3), false));
        let (head, body) = OK.split_at(OK.len() - 3);
        let both = format!("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n{get}");
        assert_eq!((answer(&both), body), ((format!("{head}{OK}"), false), "ok\n"));
    }

    #[test]
    fn bodies_of_either_framing_are_read_to_their_end() {
        let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for body in [
            "Content-Length: 27\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
            "Transfer-Encoding: chunked\r\n\r\n1a;x=\"y\"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\r\n0\r\n\r\n",
            "Transfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\nDigest: x\r\n\r\n",
            "Content-Length: 0\r\n\r\n",
        ] {
            let requests = format!("POST / HTTP/1.1\r\nHost: x\r\n{body}{get}");
            assert_eq!(answer(&requests), (OK.repeat(2), false), "{body:?}");
        }
    }

    #[test]
    fn a_client_that_asks_before_it_sends_a_body_is_told_to_go_on() {
        let request = "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(answer(request), ("HTTP/1.1 100 Continue\r\n\r\n".into(), false));
        assert_eq!(told(&[request.as_bytes(), b"ab"]).0, format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"));
    }

    #[test]
    fn the_connection_ends_when_the_client_says_so_and_as_http_1_0_has_it() {
        let after = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for head in ["GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
            assert_eq!(answer(&format!("{head}{after}")), (OK_CLOSE.into(), true));
        }
        let (kept, over) = answer("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        assert!(kept.contains("\r\nConnection: keep-alive\r\n") && !over, "{kept}");
    }

    #[test]
    fn what_is_no_request_is_refused_once_and_ends_the_connection() {
        let many = "X: y\r\n".repeat(65);
        for (request, status) in [
            ("\x16\x03\x01\x02", "400"),
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
            ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "400"),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", "400"),
            (&format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"), "431"),
            (&format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_HEAD)), "431"),
        ] {
            let (answer, over) = answer(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && over, "{request:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{request:?}: {answer}");
        }
    }

    #[test]
    fn nothing_is_kept_between_requests() {
        let (mut http, mut out) = (Http::default(), Vec::new());
        for part in ["GET / HT", "TP/1.1\r\nHost: x\r\n\r\n"] {
            http.take(part.as_bytes(), &mut out);
        }
        assert_eq!((out, http.partial.capacity()), (OK.as_bytes().to_vec(), 0));
    }

    const PIPELINE: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n\
        POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde\
        POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
        HEAD / HTTP/1.1\r\nHost: x\r\n\r\n\
        GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    proptest! {
        #[test]
        fn where_segments_begin_and_end_changes_nothing(cuts in prop::collection::vec(0..PIPELINE.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, PIPELINE.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|cut| &PIPELINE.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(told(&parts), answer(PIPELINE));
        }

        #[test]
        fn damaged_requests_are_read_or_refused(at in 0..PIPELINE.len(), byte: u8) {
            let mut bytes = PIPELINE.as_bytes().to_vec();
            bytes[at] = byte;
            let (mut http, mut out) = (Http::default(), Vec::new());
            http.take(&bytes, &mut out);
            prop_assert!(http.partial.len() < MAX_HEAD);
            prop_assert_eq!(http.refused, String::from_utf8(out).unwrap().contains("HTTP/1.1 4"));
        }
    }
}
