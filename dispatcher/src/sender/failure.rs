//! Says what an error of the HTTP client means, from the chain of its causes: an endpoint's failure, or that we have
//! nothing left to call it with.

use std::borrow::Cow;
use std::error::Error;
use std::io;

use doorbell_common::address::Refused;
use doorbell_common::outcome::OutcomeClass;
use rustix::io::Errno;
use rustls::{CertificateError, InvalidMessage};

use super::CONNECT;
use super::resolver::DnsError;

/// We have no files or memory left for a connection, which says nothing of the endpoint.
#[derive(Debug, thiserror::Error)]
#[error("this dispatcher has nothing left for another connection: {0}")]
pub(crate) struct Shortage(pub(super) io::Error);

impl Shortage {
    /// Whether it is the reason of this error, or of one that has led to it.
    pub(super) fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        const SHORT: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        let mut cause = Some(error);
        while let Some(current) = cause {
            let number = current.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            if let Some(number) = number
                && SHORT.iter().any(|short| short.raw_os_error() == number)
            {
                return Some(Self(io::Error::from_raw_os_error(number)));
            }
            cause = current.source();
        }
        None
    }
}

/// The class of a failed exchange and a sentence for people, without the URL.
///
/// # Errors
/// It failed for want of something of ours.
pub(super) fn explain(error: &reqwest::Error) -> Result<(OutcomeClass, String), Shortage> {
    if let Some(shortage) = Shortage::behind(error) {
        return Err(shortage);
    }
    if error.is_timeout() && error.is_connect() {
        let detail = format!("no connection within {} s", CONNECT.as_secs());
        return Ok((OutcomeClass::Timeout, detail));
    }
    let mut last = None;
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(current) = cause {
        if let Some(found) = meaning(current) {
            return Ok(found);
        }
        last = Some(current);
        cause = current.source();
    }
    let detail = last.map_or_else(|| "the request failed".to_owned(), ToString::to_string);
    let class = if error.is_timeout() {
        OutcomeClass::Timeout
    } else if error.is_connect() {
        OutcomeClass::Connect
    } else {
        OutcomeClass::Protocol
    };
    Ok((class, detail))
}

/// What one cause means, if it says.
fn meaning(cause: &(dyn Error + 'static)) -> Option<(OutcomeClass, String)> {
    if let Some(refused) = cause.downcast_ref::<Refused>() {
        return Some((OutcomeClass::Blocked, format!("the URL {refused}")));
    }
    if let Some(error) = cause.downcast_ref::<DnsError>() {
        return Some((OutcomeClass::Dns, error.to_string()));
    }
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some((OutcomeClass::Tls, format!("TLS failed: {}", tls_meaning(error))));
    }
    if let Some(error) = cause.downcast_ref::<hyper::Error>() {
        return http_meaning(error);
    }
    cause.downcast_ref::<io::Error>().and_then(io_meaning)
}

/// The library's words, but for what people get wrong most often.
fn tls_meaning(error: &rustls::Error) -> Cow<'static, str> {
    if *error == rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) {
        "its certificate is from no authority that is known here, or intermediate certificates are missing".into()
    } else if *error == rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) {
        "what answers there speaks no TLS".into()
    } else {
        error.to_string().into()
    }
}

fn http_meaning(error: &hyper::Error) -> Option<(OutcomeClass, String)> {
    if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        return Some((
            OutcomeClass::Protocol,
            format!("the answer is not HTTP that we read: {error}"),
        ));
    }
    let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    closed.then(|| {
        (OutcomeClass::Connect, "the endpoint closed the connection without an answer".to_owned())
    })
}

fn io_meaning(error: &io::Error) -> Option<(OutcomeClass, String)> {
    if let Some(inner) = error.get_ref() {
        // The TLS library's errors travel inside those of the socket.
        return meaning(inner);
    }
    let timed_out = error.kind() == io::ErrorKind::TimedOut;
    let class = if timed_out { OutcomeClass::Timeout } else { OutcomeClass::Connect };
    Some((class, error.to_string()))
}
