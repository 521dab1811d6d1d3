//! Errors in the shape of OpenAI's.
//!
//! Invariant: an error names the field that is wrong, if one is, and says nothing of other requests.

use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Value, json};

/// Why a request gets no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What is wrong.
    pub message: String,
    /// The field.
    pub param: Option<String>,
    /// A stable word.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// A status and a message.
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
        }
    }

    /// A request that makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message).code("invalid_value")
    }

    /// A field has a value that it cannot have.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("`{param}`: {}", message.into());
        Self {
            param: Some(param),
            ..Self::new(400, message).code("invalid_value")
        }
    }

    /// With a stable word.
    pub(crate) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// With the field.
    pub(crate) fn of(mut self, param: &str) -> Self {
        self.param.get_or_insert_with(|| param.to_owned());
        self
    }

    /// The type that clients tell errors by.
    fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body of the answer.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<FormatError> for ApiError {
    fn from(error: FormatError) -> Self {
        let (status, code) = match error.code {
            ErrorCode::ContextExceeded => (400, "context_length_exceeded"),
            ErrorCode::LimitExceeded => (400, "limit_exceeded"),
            ErrorCode::Usage => (400, "invalid_value"),
            ErrorCode::ChatTemplate => (400, "chat_template"),
            ErrorCode::Tokenizer => (400, "tokenizer"),
            ErrorCode::Busy => (503, "stopping"),
            _ => (500, "internal"),
        };
        let message = match &error.hint {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        };
        Self::new(status, message).code(code)
    }
}
