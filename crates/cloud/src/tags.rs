//! Tags of any resource that can have them: instances, volumes, images, key pairs.

impl crate::Cloud {
    /// `CreateTags`: adds tags to resources or replaces their values; all or nothing.
    pub async fn create_tags(&self, resources: &[String], tags: &ec2vmm_model::tags::Tags) -> Result<(), crate::Error> { todo!() }
    /// `DeleteTags`: by key, and by value where one is given; no keys at all: every tag.
    pub async fn delete_tags(&self, resources: &[String], tags: &[(String, Option<String>)]) -> Result<(), crate::Error> { todo!() }
}
