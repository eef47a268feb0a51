// A certified OpenID provider (npm's oidc-provider) for the scenarios, on loopback, with mutual TLS.
//
// It reads its settings as JSON from standard input, writes one line of JSON when it listens, and ends when standard
// input does:
//
//   in:  {"tls": {"key", "cert", "ca"}, "selfSigned": PEM, "secret", "keys": {NAME: public key in PEM}, "jwks": {…}}
//   out: {"issuer": "https://127.0.0.1:PORT"}
//
// Each client's id says how it authenticates. `POST /test/sign-in?client=ID` does what a person does in a browser, and
// answers with a refresh token; `GET /test/state?client=ID` tells what became of it.
import { createPublicKey, X509Certificate } from 'node:crypto';
import { createServer } from 'node:https';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// Standard output is for one line alone.
console.info = console.error;
console.log = console.error;

// The packages are in the cache folder, not beside this file.
const require = createRequire(pathToFileURL(`${process.env.OIDC_PROVIDER_MODULES}/`));
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { Provider, errors } = await load('oidc-provider');
const { createLocalJWKSet, importSPKI, jwtVerify } = await load('jose');

const input = process.stdin[Symbol.asyncIterator]();
let text = '';
while (!text.includes('\n')) text += (await input.next()).value;
const settings = JSON.parse(text);
// Whoever started this has ended.
process.stdin.resume().on('end', () => process.exit(0));

const REFRESH = 'refresh_token';
const JWT_BEARER = 'urn:ietf:params:oauth:grant-type:jwt-bearer';
const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';

const jwk = (name, more) => ({ ...createPublicKey(settings.keys[name]).export({ format: 'jwk' }), use: 'sig', ...more });
const client = (id, method, more = {}) => ({
  client_id: id,
  token_endpoint_auth_method: method,
  grant_types: method === 'none' ? [REFRESH, JWT_BEARER, TOKEN_EXCHANGE] : ['client_credentials', REFRESH, JWT_BEARER, TOKEN_EXCHANGE],
  response_types: [],
  redirect_uris: [],
  scope: 'openid offline_access',
  ...more,
});
const secret = { client_secret: settings.secret };
const signing = (name, alg) => client(alg.toLowerCase(), 'private_key_jwt', {
  token_endpoint_auth_signing_alg: alg, jwks: { keys: [jwk(name, { alg, kid: 'k1' })] },
});
const certificate = new X509Certificate(settings.selfSigned);
const clients = [
  client('basic:client', 'client_secret_basic', secret),
  client('post', 'client_secret_post', secret),
  client('secret-jwt', 'client_secret_jwt', { ...secret, token_endpoint_auth_signing_alg: 'HS256' }),
  signing('rsa', 'RS256'), signing('rsa', 'PS256'), signing('p256', 'ES256'), signing('ed25519', 'EdDSA'),
  client('tls', 'tls_client_auth', { tls_client_auth_subject_dn: 'CN=tls-client' }),
  client('self-signed', 'self_signed_tls_client_auth', {
    jwks: { keys: [{ ...certificate.publicKey.export({ format: 'jwk' }), x5c: [certificate.raw.toString('base64')] }] },
  }),
  // Those of examples/.
  { ...signing('p256', 'ES256'), client_id: 'billing' }, client('reports', 'none'), client('deployer', 'none'),
  client('public', 'none'), client('rotating', 'none'), client('keeping', 'client_secret_basic', secret),
];

const server = createServer({ ...settings.tls, requestCert: true, rejectUnauthorized: false });
await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
const issuer = `https://127.0.0.1:${server.address().port}`;

const peer = (ctx) => ctx.socket.getPeerX509Certificate();
const provider = new Provider(issuer, {
  clients,
  clientAuthMethods: [
    'client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt', 'tls_client_auth',
    'self_signed_tls_client_auth', 'none',
  ],
  enabledJWA: {
    clientAuthSigningAlgValues: ['HS256', 'RS256', 'PS256', 'ES256', 'EdDSA'],
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      selfSignedTlsClientAuth: true,
      getCertificate: peer,
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_subject_dn'
        && peer(ctx)?.subject === expected,
    },
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  rotateRefreshToken: (ctx) => ctx.oidc.client.clientId !== 'keeping',
  cookies: { keys: ['test'] },
});

const issue = async (ctx, accountId) => {
  const { client: who } = ctx.oidc;
  const grant = new provider.Grant({ accountId, clientId: who.clientId });
  grant.addOIDCScope('openid');
  const token = new provider.AccessToken({ accountId, client: who, grantId: await grant.save(), gty: 'test', scope: 'openid' });
  ctx.body = { access_token: await token.save(), expires_in: token.expiration, token_type: 'Bearer' };
};
const orInvalidGrant = async (verify) => {
  try {
    return await verify();
  } catch (error) {
    throw new errors.InvalidGrant(error.message);
  }
};

// RFC 7523 §3: signed by a key that is known, for this server, and once only.
const used = new Set();
provider.registerGrantType(JWT_BEARER, async (ctx) => {
  const { assertion } = ctx.oidc.params;
  const { payload } = await orInvalidGrant(() => jwtVerify(
    assertion,
    ({ alg }) => importSPKI(settings.keys[{ RS256: 'rsa', PS256: 'rsa', ES256: 'p256', EdDSA: 'ed25519' }[alg]], alg),
    { audience: [issuer, `${issuer}/token`], issuer: ctx.oidc.client.clientId, maxTokenAge: 600, requiredClaims: ['sub', 'exp', 'jti'] },
  ));
  if (used.has(payload.jti)) throw new errors.InvalidGrant('assertion was used before');
  used.add(payload.jti);
  await issue(ctx, payload.sub);
}, ['assertion']);

// RFC 8693: a token of this server, or of a service account of the cluster.
provider.registerGrantType(TOKEN_EXCHANGE, async (ctx) => {
  const { subject_token: token, subject_token_type: type } = ctx.oidc.params;
  if (type === 'urn:ietf:params:oauth:token-type:access_token') {
    const found = await provider.AccessToken.find(token);
    if (!found) throw new errors.InvalidGrant('subject_token is no token of this server');
    await issue(ctx, found.accountId);
  } else if (type === 'urn:ietf:params:oauth:token-type:jwt') {
    const verify = () => jwtVerify(token, createLocalJWKSet(settings.jwks), { audience: 'https://sts.example.com' });
    await issue(ctx, (await orInvalidGrant(verify)).payload.sub);
  } else {
    throw new errors.InvalidRequest('subject_token_type is not supported');
  }
  ctx.body.issued_token_type = 'urn:ietf:params:oauth:token-type:access_token';
}, ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type', 'audience']);

// What became of refresh tokens, by client: the newest one, when it was made, how many there were, and how often one was refused.
const states = new Map();
const stateOf = (id) => {
  if (!states.has(id)) states.set(id, { newest: '', at: 0, issued: 0, refused: 0 });
  return states.get(id);
};
provider.on('refresh_token.saved', (token) => {
  const state = stateOf(token.clientId);
  if (!token.consumed) Object.assign(state, { newest: token.jti, at: Date.now(), issued: state.issued + 1 });
});
provider.on('grant.error', (ctx) => { if (ctx.oidc?.client) stateOf(ctx.oidc.client.clientId).refused += 1; });

const signIn = async (id) => {
  const grant = new provider.Grant({ accountId: 'alice', clientId: id });
  grant.addOIDCScope('openid offline_access');
  const who = await provider.Client.find(id);
  const grantId = await grant.save();
  return new provider.RefreshToken({ accountId: 'alice', client: who, grantId, gty: 'authorization_code', scope: 'openid offline_access' }).save();
};

let inside = 0;
const answer = provider.callback();
server.on('request', async (request, response) => {
  const url = new URL(request.url, issuer);
  const id = url.searchParams.get('client');
  if (url.pathname === '/test/sign-in') {
    response.end(JSON.stringify({ refresh_token: await signIn(id) }));
  } else if (url.pathname === '/test/state') {
    response.end(JSON.stringify({ ...stateOf(id), inside }));
  } else {
    inside += 1;
    response.on('close', () => { inside -= 1; });
    answer(request, response);
  }
});
process.stdout.write(`${JSON.stringify({ issuer })}\n`);
