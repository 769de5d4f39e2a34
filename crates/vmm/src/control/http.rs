//! HTTP/1.1 (RFC 9110, 9112), as far as a control socket needs it: bytes to requests, answers to
//! bytes. Pure.
//!
//! Invariant: no request is longer than [`REQUEST_BYTES_MAX`], and where one ends is never in doubt:
//! what leaves room for two readings is refused, and the connection with it.

use ec2vmm_vmm_api::control::Problem;
use serde::Serialize;

/// A whole request.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// As sent: a path, or an absolute URI.
    pub(super) target: &'a str,
    pub(super) content_type: Option<&'a [u8]>,
    pub(super) body: &'a [u8],
    pub(super) keep: Keep,
}

/// What becomes of the connection after the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Keep {
    Close,
    Open,
    /// The client speaks HTTP/1.0, and must be told that it stays open.
    OpenAndSaySo,
}

/// What the bytes so far are.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    /// The beginning of a request.
    Incomplete {
        /// Bytes that it will have at least.
        needed: usize,
        /// The client sends the body once it is told to go on.
        wants_continue: bool,
    },
    /// A request, and how many bytes it takes.
    Complete { request: Request<'a>, bytes: usize },
}

/// Reads a request from the beginning of `bytes`.
///
/// # Errors
/// What to answer. Where the next request starts is unknown then.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed<'_>, Problem> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) if head_bytes <= HEAD_BYTES_MAX => head_bytes,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => {
            return Ok(Parsed::Incomplete { needed: bytes.len() + 1, wants_continue: false });
        }
        Ok(_) => return Err(problem(431, format!("a request's head is longer than {HEAD_BYTES_MAX} bytes"))),
        Err(error) => return Err(malformed(error)),
    };
    let fields = Fields::read(request.headers)?;
    let minor = request.version.unwrap_or_default();
    let bytes_all = head_bytes + fields.body_bytes;
    let Some(body) = bytes.get(head_bytes..bytes_all) else {
        let wants_continue = fields.expects_continue && minor > 0;
        return Ok(Parsed::Incomplete { needed: bytes_all, wants_continue });
    };
    let keep = match (minor, fields.close, fields.keep_alive) {
        (_, true, _) | (0, _, false) => Keep::Close,
        (0, _, true) => Keep::OpenAndSaySo,
        _ => Keep::Open,
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let request = Request { method, target, content_type: fields.content_type, body, keep };
    Ok(Parsed::Complete { request, bytes: bytes_all })
}

/// The header fields that matter here.
#[derive(Default)]
struct Fields<'a> {
    body_bytes: usize,
    content_type: Option<&'a [u8]>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl<'a> Fields<'a> {
    fn read(headers: &[httparse::Header<'a>]) -> Result<Self, Problem> {
        let mut fields = Self::default();
        let mut length = None;
        for &httparse::Header { name, value } in headers {
            if name.eq_ignore_ascii_case("content-length") {
                let this = content_length(value)?;
                if length.is_some_and(|length| length != this) {
                    return Err(problem(400, "Content-Length: given twice, differently".into()));
                }
                length = Some(this);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(transfer_encoding(value));
            } else if name.eq_ignore_ascii_case("content-type") {
                fields.content_type = Some(value);
            } else if name.eq_ignore_ascii_case("connection") {
                fields.close |= lists(value, "close");
                fields.keep_alive |= lists(value, "keep-alive");
            } else if name.eq_ignore_ascii_case("expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(problem(417, "Expect: 100-continue is all that can be expected".into()));
                }
                fields.expects_continue = true;
            }
        }
        fields.body_bytes = length.unwrap_or_default();
        Ok(fields)
    }
}

/// Digits only (RFC 9112, 6.3): no sign, no list, no blank.
fn content_length(value: &[u8]) -> Result<usize, Problem> {
    let digits = str::from_utf8(value)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    let Some(digits) = digits else {
        return Err(problem(400, "Content-Length: not a number".into()));
    };
    // Digits that are no number are too large a number.
    match digits.parse() {
        Ok(length) if length <= BODY_BYTES_MAX => Ok(length),
        _ => Err(problem(413, format!("a request's body is longer than {BODY_BYTES_MAX} bytes"))),
    }
}

fn transfer_encoding(value: &[u8]) -> Problem {
    if value.eq_ignore_ascii_case(b"chunked") {
        let hint = "send the body in one piece, with Content-Length";
        return Problem { hint: Some(hint.into()), ..problem(411, "a chunked request body".into()) };
    }
    problem(501, "Transfer-Encoding: unknown".into())
}

/// Whether a comma-separated list of tokens has this one.
fn lists(value: &[u8], token: &str) -> bool {
    value.split(|&byte| byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

fn malformed(error: httparse::Error) -> Problem {
    match error {
        httparse::Error::TooManyHeaders => problem(431, format!("more than {HEADERS_MAX} header fields")),
        httparse::Error::Version => problem(505, "not HTTP/1.1 or HTTP/1.0".into()),
        error => problem(400, format!("malformed request: {error}")),
    }
}

/// A problem that explains itself.
pub fn problem(status: u16, detail: String) -> Problem {
    Problem { status, detail, hint: None }
}

/// What is answered.
#[derive(Debug)]
pub(super) struct Response {
    status: u16,
    content: Option<(&'static str, Vec<u8>)>,
    allow: Option<String>,
    /// The content goes on until the connection is closed.
    stream: bool,
    /// It is not known yet.
    later: bool,
}

impl Response {
    /// 200 and a JSON document.
    ///
    /// # Errors
    /// The value has no JSON form.
    pub(super) fn json(value: &impl Serialize) -> Result<Self, Problem> {
        let mut body =
            serde_json::to_vec(value).map_err(|error| problem(500, format!("writing JSON: {error}")))?;
        body.push(b'\n');
        Ok(Self { content: Some(("application/json", body)), ..Self::new(200) })
    }

    /// 200 and JSON documents, one a line: these, and more as they come.
    pub(super) fn lines(first: Vec<u8>) -> Self {
        Self { content: Some(("application/x-ndjson", first)), stream: true, ..Self::new(200) }
    }

    /// 204: done, nothing to say.
    pub(super) fn no_content() -> Self {
        Self::new(204)
    }

    /// 202: it is under way.
    pub(super) fn accepted() -> Self {
        // Without a body its length must be said, as 204 need not (RFC 9110, 8.6).
        Self { content: Some(("application/json", b"{}\n".to_vec())), ..Self::new(202) }
    }

    /// What is done is not done yet: the answer will be another.
    pub(super) fn later() -> Self {
        Self { later: true, ..Self::new(200) }
    }

    /// The problem's own status, and the problem (RFC 9457) as JSON document.
    pub(super) fn problem(problem: &Problem) -> Self {
        let body = serde_json::to_string(problem).unwrap_or_default() + "\n"; // strings and a number
        let content = Some(("application/problem+json", body.into_bytes()));
        Self { content, ..Self::new(problem.status) }
    }

    fn new(status: u16) -> Self {
        Self { status, content: None, allow: None, stream: false, later: false }
    }

    /// Whether the content goes on until the connection is closed.
    pub(super) fn is_stream(&self) -> bool {
        self.stream
    }

    /// Whether it is not known yet.
    pub(super) fn is_later(&self) -> bool {
        self.later
    }

    /// With the methods that there are instead.
    pub(super) fn allow(self, methods: String) -> Self {
        Self { allow: Some(methods), ..self }
    }

    /// As it goes over the wire. `HEAD` is answered without the content, but with its length.
    pub(super) fn encode(&self, keep: Keep, head_only: bool, output: &mut Vec<u8>) {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        match &self.content {
            Some((kind, _)) if self.stream => head += &format!("Content-Type: {kind}\r\n"),
            Some((kind, body)) => {
                head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
            }
            None => {}
        }
        if let Some(methods) = &self.allow {
            head += &format!("Allow: {methods}\r\n");
        }
        head += match keep {
            // Where it ends is where the connection does (RFC 9112, 6.3).
            _ if self.stream => "Connection: close\r\n\r\n",
            Keep::Close => "Connection: close\r\n\r\n",
            Keep::Open => "\r\n",
            Keep::OpenAndSaySo => "Connection: keep-alive\r\n\r\n",
        };
        output.extend_from_slice(head.as_bytes());
        if let Some((_, body)) = self.content.as_ref().filter(|_| !head_only) {
            output.extend_from_slice(body);
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// Go on with the body (RFC 9110, 15.2.1).
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// The longest request.
pub(super) const REQUEST_BYTES_MAX: usize = HEAD_BYTES_MAX + BODY_BYTES_MAX;

const HEAD_BYTES_MAX: usize = 16 * 1024;
const BODY_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;
