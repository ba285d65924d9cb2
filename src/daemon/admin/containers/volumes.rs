//! Volumes: directories that outlive containers.

use pinnace_admin_api::v1;
use tonic::{Request, Response};

use super::{Answer, Containers, nothing};
use crate::error::{Error, Within as _};
use crate::local::volumes::{self, Volume};
use crate::node::Node;

fn message(node: &Node, volume: Volume) -> v1::Volume {
    v1::Volume {
        path: volumes::data(node, &volume.name).display().to_string(),
        created_at_ns: volume.created_at_ns,
        labels: volume.labels.into_iter().collect(),
        anonymous: volume.made_for.is_some(),
        users: volumes::users(node, &volume.name),
        name: volume.name,
    }
}

#[tonic::async_trait]
impl v1::volumes_server::Volumes for Containers {
    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::Volume> {
        let v1::CreateVolumeRequest { name, labels } = request.into_inner();
        let created = self.node.blocking(move |node| {
            let volume = volumes::create(node, &name, labels.into_iter().collect(), None)?;
            Ok(message(node, volume))
        });
        Ok(Response::new(created.await.within(|| "create volume".to_owned())?))
    }

    async fn list_volumes(&self, _: Request<v1::Nothing>) -> Answer<v1::ListVolumesResponse> {
        let volumes = self.node.blocking(|node| {
            Ok(volumes::all(node)?.into_iter().map(|volume| message(node, volume)).collect())
        });
        Ok(Response::new(v1::ListVolumesResponse { volumes: volumes.await? }))
    }

    async fn inspect_volume(&self, request: Request<v1::VolumeSelector>) -> Answer<v1::Volume> {
        let v1::VolumeSelector { name } = request.into_inner();
        let found = self.node.blocking(move |node| Ok(message(node, volumes::find(node, &name)?)));
        Ok(Response::new(found.await?))
    }

    async fn remove_volume(&self, request: Request<v1::RemoveVolumeRequest>) -> Answer<v1::Nothing> {
        let v1::RemoveVolumeRequest { name, force } = request.into_inner();
        let what = format!("remove volume {name}");
        let removed = self.node.blocking(move |node| match volumes::remove(node, &name, false) {
            Err(Error::NoSuchVolume(_)) if force => Ok(()),
            removed => removed,
        });
        removed.await.within(|| what)?;
        nothing()
    }

    async fn prune_volumes(
        &self,
        request: Request<v1::PruneVolumesRequest>,
    ) -> Answer<v1::PruneVolumesResponse> {
        let v1::PruneVolumesRequest { all } = request.into_inner();
        let (removed, reclaimed_bytes) = self.node.blocking(move |node| volumes::prune(node, all)).await?;
        Ok(Response::new(v1::PruneVolumesResponse { removed, reclaimed_bytes }))
    }
}
