{{- define "tokencache.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A Service's name has at most 63 characters, no dot, and starts with a letter. */}}
{{- define "tokencache.metricsServiceName" -}}
{{- $name := include "tokencache.fullname" . | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "tokencache-%s" $name -}}
{{- end -}}
{{- printf "%s-metrics" ($name | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{- define "tokencache.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "tokencache.labels" -}}
{{ include "tokencache.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{- define "tokencache.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tokencache.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tokencache.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tokencache.rules" -}}
rules:
{{ .Files.Get "files/rules.yaml" | trim | indent 2 }}
{{- if .Values.features.jobs }}
{{ .Files.Get "files/rules-jobs.yaml" | trim | indent 2 }}
{{- end }}
{{- if .Values.features.serviceAccountTokens }}
{{ .Files.Get "files/rules-service-account-tokens.yaml" | trim | indent 2 }}
{{- end }}
{{- if .Values.features.restarts }}
{{ .Files.Get "files/rules-restarts.yaml" | trim | indent 2 }}
{{- end }}
{{- end -}}

{{- /* Networks that may not be connected to, as a JSON array. */}}
{{- define "tokencache.denyCidrs" -}}
{{- $denied := .Values.denyCidrs -}}
{{- if eq .Values.profile "multiTenant" -}}
{{- $private := list "10.0.0.0/8" "172.16.0.0/12" "192.168.0.0/16" "100.64.0.0/10" "fc00::/7" -}}
{{- $denied = concat $private .Values.clusterCidrs $denied -}}
{{- end -}}
{{- uniq $denied | toJson -}}
{{- end -}}

{{- /* The controller as the API server names it. */}}
{{- define "tokencache.username" -}}
{{- printf "system:serviceaccount:%s:%s" .Release.Namespace (include "tokencache.serviceAccountName" .) -}}
{{- end -}}

{{- /* ValidatingAdmissionPolicies are served since Kubernetes 1.30. */}}
{{- define "tokencache.servesPolicies" -}}
{{- if semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version }}true{{ end -}}
{{- end -}}

{{- /* Policies are cluster-wide: releases for different namespaces may have the same name. */}}
{{- define "tokencache.policyName" -}}
{{- $name := include "tokencache.fullname" .root -}}
{{- if .root.Values.watchNamespaces -}}
{{- $name = printf "%s-%s" .root.Release.Namespace $name -}}
{{- end -}}
{{- printf "%s-%s" $name .policy -}}
{{- end -}}

{{- /* The head of a policy: root, policy (its short name). */}}
{{- define "tokencache.policy" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ include "tokencache.policyName" . | quote }}
  labels:
    {{- include "tokencache.labels" .root | nindent 4 }}
{{- end -}}

{{- /* Its binding, to the namespaces of the release: root, policy. */}}
{{- define "tokencache.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ include "tokencache.policyName" . | quote }}
  labels:
    {{- include "tokencache.labels" .root | nindent 4 }}
spec:
  policyName: {{ include "tokencache.policyName" . | quote }}
  validationActions: [Deny]
  {{- with uniq .root.Values.watchNamespaces }}
  matchResources:
    namespaceSelector:
      matchExpressions:
        - key: kubernetes.io/metadata.name
          operator: In
          values:
            {{- range . }}
            - {{ . | quote }}
            {{- end }}
  {{- end }}
{{- end -}}

{{- /* Lets everybody but the controller pass on to the next conditions. */}}
{{- define "tokencache.notTheController" -}}
- name: not-the-controller
  expression: request.userInfo.username != '{{ include "tokencache.username" . }}'
{{- end -}}

{{- /* True for clients that act as a controller, such as tokencache fetch --direct. */}}
{{- define "tokencache.mayUpdateStatus" -}}
authorizer.group('tokencache.dev').resource('tokencaches').subresource('status').namespace(request.namespace).check('update').allowed()
{{- end -}}
