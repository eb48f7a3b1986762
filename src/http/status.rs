//! Status lists: public, and fetched every few seconds by every verifier that reads them.

use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use std::sync::Arc;

use super::{
    error::Problem,
    keys::cache_control,
    openapi::{Refusals, refused},
};
use crate::broker::{Broker, StatusList};

const MEDIA_TYPE: &str = "application/statuslist+jwt";

/// A status list: which tasks have ended, one bit for each.
///
/// A signed JWT (`typ: statuslist+jwt`) of the Token Status List draft. Tokens name their list and their place in it.
#[utoipa::path(
    get, path = "/status-lists/{id}", operation_id = "statusList", tag = "keys",
    params(("id" = u64, Path, description = "The number of the list, in decimal")),
    responses(
        (status = 200, description = "The list", body = String, content_type = "application/statuslist+jwt",
            headers(("Cache-Control" = String, description = "`max-age`: how long it may be kept"))),
        Refusals<{ refused::NO_SUCH_LIST | refused::NOT_ACCEPTABLE }>,
    ),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn list(
    State(broker): State<Arc<Broker>>,
    id: Result<Path<String>, axum::extract::rejection::PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Some(list) = id.ok().and_then(|Path(id)| number(&id)) else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    if !accepts(&headers) {
        return Ok(StatusCode::NOT_ACCEPTABLE.into_response());
    }
    let Some(StatusList { token, max_age }) = broker.status_list(list).await? else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE)),
        (header::CACHE_CONTROL, cache_control(Some(max_age))),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ];
    Ok((headers, token).into_response())
}

/// A number in the one way it is written in a `uri`: nothing else is the list's name.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// Whether `Accept` leaves our one form in (RFC 9110 section 12.5.1), as far as that is told by names: weights are not read.
fn accepts(headers: &HeaderMap) -> bool {
    let mut asked = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    let ours = |range: &str| {
        let name = range.split(';').next().unwrap_or_default().trim();
        [MEDIA_TYPE, "application/*", "*/*"].iter().any(|known| name.eq_ignore_ascii_case(known))
    };
    asked.peek().is_none() || asked.any(|value| value.split(',').any(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_one_name() {
        assert_eq!((number("0"), number("17"), number("18446744073709551615")), (Some(0), Some(17), Some(u64::MAX)));
        for other in ["", "00", "+1", "-1", "1.0", "0x1", "1 ", "١", "18446744073709551616"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn accept_may_leave_us_in_or_out() {
        let accepts = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::ACCEPT, HeaderValue::from_static(value));
            }
            accepts(&headers)
        };
        assert!(accepts(&[]) && accepts(&["*/*"]) && accepts(&["text/html, application/*;q=0.8"]));
        assert!(accepts(&["Application/StatusList+JWT"]) && accepts(&["text/html", MEDIA_TYPE]));
        assert!(!accepts(&["application/statuslist+cwt"]) && !accepts(&["text/html,application/json"]));
    }
}
