//! Requests to buckets by ureq, whose TLS the hub's client has already, in place of object_store's own client.

use std::io::Read;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body::{Body, Frame};
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService,
};
use ureq::http::{Request, Response};
use ureq::{Agent, BodyReader, Proxy, Timeout};

/// The time for a connection, and for any sign of life after it.
const CONNECT: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(60);

/// Bytes that are taken from an answer at a time.
const CHUNK: usize = 64 << 10;

/// Makes clients of ureq.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let setting = |key| options.get_config_value(&key).filter(|value| !value.is_empty());
        let invalid = |source: ureq::Error| object_store::Error::Generic { store: "S3", source: Box::new(source) };
        let proxy = setting(ClientConfigKey::ProxyUrl).map(|url| Proxy::new(&url)).transpose().map_err(invalid)?;
        let allow_http = setting(ClientConfigKey::AllowHttp).is_some_and(|value| matches!(&*value, "true" | "1"));
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!allow_http)
            .max_redirects(0)
            .proxy(proxy)
            .user_agent(concat!("catelier/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(IDLE))
            .timeout_per_read(Some(IDLE))
            .timeout_per_write(Some(IDLE))
            .build()
            .new_agent();
        Ok(HttpClient::new(Service(agent)))
    }
}

#[derive(Debug)]
struct Service(Agent);

#[async_trait]
impl HttpService for Service {
    /// Waits for the answer on this thread: one request is under way at a time.
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let body = content(body);
        let answer = match body.is_empty() && head.method != "PUT" && head.method != "POST" {
            true => self.0.run(Request::from_parts(head, ())),
            false => self.0.run(Request::from_parts(head, &body[..])),
        };
        let (head, body) = answer.map_err(failure)?.into_parts();
        let body = Answer { reader: Mutex::new(body.into_reader()), chunk: vec![0; CHUNK] };
        Ok(Response::from_parts(head, HttpResponseBody::new(body)))
    }
}

/// All bytes of a request. They are in memory already, and nearly always one piece.
fn content(mut body: object_store::client::HttpRequestBody) -> Bytes {
    if let Some(bytes) = body.as_bytes() {
        return bytes.clone();
    }
    let mut pieces = Vec::new();
    let mut context = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
        pieces.extend(frame.into_data().ok());
    }
    match &pieces[..] {
        [one] => one.clone(),
        pieces => pieces.concat().into(),
    }
}

/// The body of an answer, which is read as it is asked for.
struct Answer {
    // A mutex, since what is read from may not be shared; nobody ever waits for it.
    reader: Mutex<BodyReader<'static>>,
    chunk: Vec<u8>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let Self { reader, chunk } = &mut *self;
        let reader = reader.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        Poll::Ready(match reader.read(chunk) {
            Ok(0) => None,
            Ok(count) => Some(Ok(Frame::data(Bytes::copy_from_slice(&chunk[..count])))),
            Err(error) => Some(Err(HttpError::new(HttpErrorKind::Interrupted, error))),
        })
    }
}

/// The kind of error decides whether object_store tries again.
fn failure(error: ureq::Error) -> HttpError {
    let kind = match &error {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => HttpErrorKind::Connect,
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => HttpErrorKind::Connect,
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}
