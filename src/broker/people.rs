//! What operators may.

use super::{Broker, Call};
use crate::{
    error::Error,
    party::{Act, Operator},
};

impl Broker {
    /// Lets an operator go on whose roles allow it; of any other it is on record that they tried.
    ///
    /// # Errors
    /// [`Error::PolicyDenied`] with the role that it takes, [`Error::Unavailable`].
    pub(super) async fn allow(&self, operator: &Operator, act: Act, call: &Call<'_>) -> Result<(), Error> {
        if operator.may(act) {
            return Ok(());
        }
        let why = format!("this takes an operator with the role `{}`", act.role());
        Err(self.refuse_operator(operator, call, &why).await?)
    }
}
