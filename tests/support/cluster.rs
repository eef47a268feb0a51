//! The cluster that was given to the tests.

use std::{path::Path, time::Duration};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::wait::{await_condition, conditions::is_crd_established},
};
use tokencache::client::connect;
use tokio::sync::OnceCell;

use super::{on_worker, policies, rights::create_system, within};

const VARIABLE: &str = "TOKENCACHE_TEST_KUBECONFIG";

/// A cluster, and by [`Cluster::get`] one that has the CustomResourceDefinition.
pub struct Cluster {
    /// A client with an admin's rights.
    pub client: Client,
    /// Path of its kubeconfig.
    pub kubeconfig: String,
}

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();

impl Cluster {
    /// The one cluster of this process.
    pub async fn get() -> &'static Self {
        // The definition is nested deeper than the stack of a test's own thread reaches in a debug build.
        let install = || {
            Box::pin(on_worker(async {
                let cluster = Self::connect().await;
                install_crd(&cluster.client).await;
                create_system(&cluster.client).await;
                policies::bind(&cluster.client).await;
                cluster
            }))
        };
        CLUSTER.get_or_init(install).await
    }

    /// The same without the CustomResourceDefinition, for a process that installs that in its own way.
    pub async fn bare() -> &'static Self {
        CLUSTER.get_or_init(Self::connect).await
    }

    async fn connect() -> Self {
        let Ok(kubeconfig) = std::env::var(VARIABLE) else {
            panic!(
                "the scenarios need a Kubernetes cluster: run `hack/cluster.sh run -- cargo test --test scenarios`, \
                 or set {VARIABLE} to an admin's kubeconfig of one that may be filled with test objects"
            );
        };
        let client = connect(config(&kubeconfig).await).expect("a client");
        Self { client, kubeconfig }
    }

    /// A client that tells at once what the API server refuses. Else kube's client repeats it by itself, after pauses that
    /// double up to minutes.
    pub async fn impatient(&self) -> Client {
        static CLIENT: OnceCell<Client> = OnceCell::const_new();
        let make = || async {
            let mut config = config(&self.kubeconfig).await;
            config.default_retry = false;
            connect(config).expect("a client")
        };
        CLIENT.get_or_init(make).await.clone()
    }
}

async fn config(kubeconfig: &str) -> Config {
    let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a usable kubeconfig");
    // A busy API server is no failure of a test.
    config.read_timeout = Some(Duration::from_secs(300));
    config
}

/// By plain create and replace: Kubernetes 1.20 answers a server-side apply of it with 500.
async fn install_crd(client: &Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let wanted = wanted_crd();
    let name = wanted.metadata.name.clone().expect("a name");
    match crds.create(&PostParams::default(), &wanted).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let mut replacement = wanted;
            replacement.metadata.resource_version = crds.get(&name).await.expect("the CRD").metadata.resource_version;
            crds.replace(&name, &PostParams::default(), &replacement).await.expect("the CRD is replaced");
        }
        Err(error) => panic!("cannot create the CRD: {error}"),
    }
    let established = await_condition(crds, &name, is_crd_established());
    within("the CRD is established", established).await.expect("a watch of the CRD");
}

/// What users install is what is tested.
fn wanted_crd() -> CustomResourceDefinition {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds/tokencache.yaml");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_saphyr::from_str(&text).expect("a CRD")
}
