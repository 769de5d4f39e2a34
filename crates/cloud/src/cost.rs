//! What the same use costs on AWS, on demand.

impl crate::Cloud {
    /// What was used from `from` (nothing: ever since) to `to` (nothing: now), and what that costs on AWS.
    pub async fn cost(&self, from: Option<ec2vmm_model::Time>, to: Option<ec2vmm_model::Time>) -> Result<ec2vmm_model::cost::Report, crate::Error> { todo!() }
}
